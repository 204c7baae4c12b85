"""No stage waits for the device: all run on tensors that only pretend to be on CUDA, which know no values.

Asking such a tensor for a value (`item`, `bool`, a mask as an index) raises, and a copy between host and device is
seen, also that of a Python number by `torch.as_tensor(number, device=...)`, for which CUDA waits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from rule_cases import ALONE, PAIRS, spanning
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from rlspec.optim import RULES, SpectralOptimizer
from rlspec.optim.composition import Pair, Step
from rlspec.optim.kernels.blocks import product_dtype
from rlspec.optim.kernels.newton_schulz import newton_schulz
from rlspec.optim.kernels.normalisers import NORMALISERS
from rlspec.optim.kernels.schedules import keller
from rlspec.optim.kernels.shape_fit import fit_quintic
from rlspec.optim.stages.clipping import soft_clip_blocks
from rlspec.optim.stages.constraints import METHODS as CAPS
from rlspec.optim.stages.constraints import constrain
from rlspec.optim.stages.low_rank import dct_basis

CUDA = torch.device("cuda", 0)
DECOMPOSED = {"conda", "low_rank_muon", "shampoo", "soap"}
"""Rules that are an SVD by definition, which checks its result on the host: Conda's in one step of `basis_period`.
Shampoo's roots are eigendecompositions in every step of `shampoo_period`; SOAP's first step is an SVD."""
OFTEN = {"basis_period": 1, "whitening_period": 1, "dct_period": 1, "soap_period": 1}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "pion": [{"promotion_steps": "auto"}, {"promotion_steps": 1.5}],
    "right_polar": [{"polar_eps": 0.1}, {"polar_eps": 0.1, "eps_mode": "absolute"}],
    "row_norm": [{"eps_mode": "absolute"}],
    "aro": [{"base_function": "polar"}, {"base_function": "sign"}, {"base_function": "row_norm"}],
    "shampoo": [{}, {"shampoo_graft": "none"}, {"max_precondition_dim": 300}],
    "soap": [{}, {"max_precondition_dim": 300}],
    "muon": [{"normalise": name} for name in NORMALISERS],
}


class Watch(TorchDispatchMode):
    """Notes copies between devices, and decompositions that CUDA waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []
        self.decompositions: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        devices = {entry.device.type for entry in (*args, result) if isinstance(entry, Tensor)}
        if name in ("_to_copy", "copy_") and len(devices) > 1:
            self.copies.append(name)
        if name in ("_linalg_svd", "_linalg_eigh", "linalg_cholesky", "linalg_inv", "linalg_solve"):
            self.decompositions.append(name)
        return result


@pytest.fixture
def watch() -> Iterator[Watch]:
    dct_basis.cache_clear()
    for steps in (3, 5):  # fitted once, when real values are at hand
        for shape in ((6, 9), (256, 512)):
            fit_quintic(*shape, steps)
    with FakeTensorMode(), Watch() as mode:
        yield mode
    dct_basis.cache_clear()  # of tensors without values


def group_of(rule: str, **settings: Any) -> dict[str, Any]:
    shapes = ((3, 9), (6, 3)) if rule in PAIRS else ((6, 9),)
    params = [nn.Parameter(torch.empty(shape)) for shape in shapes]
    offered = {name: value for name, value in OFTEN.items() if name in RULES[rule].options}
    return SpectralOptimizer(params, rule=rule, lr=0.1, **offered, **settings).param_groups[0]


def state_of(rule: str, settings: dict[str, Any], *shape: int, factor: Any = "") -> dict[str, Tensor]:
    buffers = RULES[rule].buffers(*shape, settings, factor).items()
    return {name: torch.empty(2, *buffer.shape, device=CUDA) for name, buffer in buffers}


def take_steps(run: Callable[[Step], object], watch: Watch, settings: dict[str, Any], state: dict[str, Tensor]) -> None:
    """Two: the first may still copy what is kept for good."""
    for count in (1, 2):
        watch.copies.clear()
        run(Step(settings, 0.1, 3.0, count, torch.bfloat16, torch.empty(2, 1, 1, device=CUDA), state))


OPTIONS = [(rule, option) for rule in ALONE for option in VARIANTS.get(rule, [{}])]


@pytest.mark.parametrize(("rule", "options", "shape"), spanning(OPTIONS, [((6, 9),), ((9, 6),), ((256, 512),)], each=1))
def test_no_stage_waits_for_the_device(
    rule: str, options: dict[str, Any], shape: tuple[int, int], watch: Watch
) -> None:
    settings = group_of(rule, **options)

    def run(step: Step) -> None:
        step.gradient = blocks = torch.empty(2, *shape, device=CUDA)
        for stage in (*RULES[rule].before, *RULES[rule].stages):
            blocks = stage(blocks, step)
        assert blocks.device == CUDA
        assert blocks.shape == (2, *shape)

    take_steps(run, watch, settings, state_of(rule, settings, *shape))
    assert watch.copies == []
    assert bool(watch.decompositions) == (rule in DECOMPOSED)


@pytest.mark.parametrize("rule", PAIRS)
@pytest.mark.parametrize("promotion_steps", [1, "auto"])
def test_no_pair_waits_for_the_device(rule: str, promotion_steps: Any, watch: Watch) -> None:
    settings = group_of(rule, promotion_steps=promotion_steps)
    a, b = torch.empty(2, 3, 9, device=CUDA), torch.empty(2, 6, 3, device=CUDA)
    state = state_of(rule, settings, 3, 9, factor="a") | state_of(rule, settings, 6, 3, factor="b")
    take_steps(lambda step: RULES[rule].pair(Pair(a, b, a, b, a, b, 2.0), step), watch, settings, state)
    assert watch.copies == []
    assert watch.decompositions == []


@pytest.mark.parametrize("method", CAPS)
def test_no_bound_waits_for_the_device(method: str, watch: Watch) -> None:
    blocks = torch.empty(2, 6, 9, device=CUDA)
    constrain(blocks, 0.5, method)
    soft_clip_blocks(blocks, 0.5)
    assert watch.copies == []
    assert watch.decompositions == []


def test_what_waits_is_noticed(watch: Watch) -> None:
    blocks = torch.empty(2, 6, 9, device=CUDA)
    torch.as_tensor(0.5, device=CUDA)
    assert len(watch.copies) == 1
    torch.linalg.svd(blocks)
    assert len(watch.decompositions) == 1
    with pytest.raises(DataDependentOutputException):
        bool(blocks.isfinite().all())


@pytest.fixture
def float32_products() -> Iterator[Callable[[str], None]]:
    def allow(precision: str) -> None:
        torch.backends.cuda.matmul.fp32_precision = precision

    before = torch.backends.cuda.matmul.fp32_precision
    yield allow
    allow(before)


def test_tf32_products_count_as_what_they_are(watch: Watch, float32_products: Callable[[str], None]) -> None:
    blocks = torch.empty(2, 64, 256, device=CUDA)
    float32_products("tf32")
    assert product_dtype(blocks) == torch.float16
    assert product_dtype(blocks.double()) == torch.float64
    assert product_dtype(torch.empty(2, 64, 256)) == torch.float32
    float32_products("ieee")
    assert product_dtype(blocks) == torch.float32


def test_with_tf32_the_gram_iteration_restarts_as_often_as_in_float16(
    watch: Watch, float32_products: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []
    monkeypatch.setattr(
        "rlspec.optim.kernels.newton_schulz.gram_iteration", lambda *args: chosen.append(args[2]) or args[0]
    )
    for precision in ("ieee", "tf32"):
        float32_products(precision)
        newton_schulz(torch.empty(1, 64, 1024, device=CUDA), keller(5), method="gram")
    assert chosen == [(2,), (1, 3)]
