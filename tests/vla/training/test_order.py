"""The order of samples and all random numbers follow from the seed and the step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from rlspec.errors import ConfigError
from rlspec.vla.training.order import BatchShape, SampleOrder, derive_seed, seed_all


def test_every_pass_sees_every_sample_once_in_an_order_of_its_own() -> None:
    order = SampleOrder(length=10, batch=4, seed=3)
    stream = np.concatenate([order.step(step) for step in range(10)]).tolist()  # four passes
    passes = [stream[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(each) == list(range(10)) for each in passes)
    assert len({tuple(each) for each in passes}) == 4


def test_a_step_does_not_depend_on_those_before_it() -> None:
    forward = SampleOrder(length=7, batch=3, seed=0)
    steps = [forward.step(step).tolist() for step in range(12)]
    assert [SampleOrder(7, 3, 0).step(step).tolist() for step in reversed(range(12))] == steps[::-1]
    assert SampleOrder(7, 3, 1).step(0).tolist() != steps[0]


def test_a_batch_larger_than_the_data_repeats_it() -> None:
    counts = Counter(SampleOrder(length=3, batch=8, seed=0).step(0).tolist())
    assert sorted(counts.values()) == [2, 3, 3]
    assert SampleOrder(3, 8, 0).epochs(6) == 16.0


def test_passes_and_processes_share_a_step_out_without_overlap() -> None:
    shapes = [BatchShape(2, passes=3, processes=2, process=process) for process in range(2)]
    parts = [list(range(12))[shape.part(number)] for number in range(3) for shape in shapes]
    assert [sample for part in parts for sample in part] == list(range(12))
    assert shapes[0].samples == 12
    assert [shape.place(number) for number in range(3) for shape in shapes] == list(range(6))


def test_other_processes_make_the_samples_of_a_step_in_other_passes() -> None:
    two = BatchShape(2, passes=3, processes=2)
    one = BatchShape(2, passes=3).with_samples(two.samples)
    assert (one.passes, one.samples) == (6, 12)
    assert [one.part(number) for number in range(6)] == [
        BatchShape(2, passes=3, processes=2, process=process).part(number) for number in range(3) for process in (0, 1)
    ]
    with pytest.raises(ConfigError, match=r"12 samples, which 4 processes with training.batch_size=2 cannot make; "):
        BatchShape(2, processes=4).with_samples(12)


def test_seeds_differ_along_a_path_and_start_every_generator() -> None:
    seeds = {derive_seed(*path) for path in [(0, 1), (1, 0), (0, 1, 0), (0, 2), (0, 1, 1)]}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    draws = []
    for _ in range(2):
        seed_all(derive_seed(5, 1))
        draws.append((torch.rand(1).item(), np.random.rand()))
    assert draws[0] == draws[1]
