"""The order of prompts: complete passes, TRL's layout, and the same after a restart."""

from __future__ import annotations

from itertools import islice

from rlspec.rlvr.training.sampler import PromptSampler, epoch_permutation


def sampler(**changes: int) -> PromptSampler:
    settings = {
        "num_prompts": 7,
        "prompts_per_block": 3,
        "samples_per_prompt": 2,
        "block_repeats": 2,
        "num_blocks": 7,
        "seed": 0,
    }
    return PromptSampler(**{**settings, **changes})


def test_every_pass_uses_every_prompt_once_and_none_is_dropped_at_its_end() -> None:
    prompts = list(sampler(samples_per_prompt=1, block_repeats=1))
    assert len(prompts) == 21
    for epoch in range(3):
        assert sorted(prompts[7 * epoch : 7 * epoch + 7]) == list(range(7))


def test_passes_differ_and_depend_on_the_seed() -> None:
    orders = {tuple(epoch_permutation(50, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in range(3)}
    assert len(orders) == 6


def test_blocks_have_the_layout_of_trls_sampler() -> None:
    from trl.trainer.utils import RepeatSampler

    ours = list(sampler(num_prompts=6, num_blocks=2))
    theirs = list(RepeatSampler(range(6), mini_repeat_count=2, batch_size=3, repeat_count=2, seed=0))
    # Same layout, another permutation: renaming prompts by first appearance makes them equal.
    rename = lambda stream: [list(dict.fromkeys(stream)).index(prompt) for prompt in stream]  # noqa: E731
    assert rename(ours) == rename(theirs)


def test_a_longer_run_begins_like_a_shorter_one() -> None:
    short = list(sampler(num_blocks=2))
    assert list(islice(sampler(num_blocks=9), len(short))) == short


def test_its_length_is_what_it_yields() -> None:
    assert len(list(sampler())) == len(sampler()) == 84


def test_without_shuffling_the_order_is_the_data_sets() -> None:
    prompts = list(sampler(samples_per_prompt=1, block_repeats=1, shuffle=False))
    assert prompts == list(range(7)) * 3


def test_blocks_that_have_grown_go_on_where_the_smaller_ones_ended() -> None:
    small = list(sampler(samples_per_prompt=1, block_repeats=1))
    grown = list(sampler(samples_per_prompt=1, block_repeats=1, prompts_per_block=6, num_blocks=4, origin=(2, 6)))
    assert grown[2 * 6 :] == small[6:18]  # the first two blocks are passed over
