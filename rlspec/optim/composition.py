"""What a rule is made of: stages, the buffers they keep, and the line of the table that composes them.

    update = scale . merge . stages (filter, variance, ...) . split . momentum (gradient)

A stage is a pure function on a batch of matrices. Its keyword-only arguments are its options: those with a default are
the stage's own, and a user sets them by name; those without one are the optimizer's (`ns_steps`, `momentum`, ...).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from rlspec.errors import ConfigError

Settings = Mapping[str, Any]
"""The hyperparameters of one parameter group."""

Momentum = Callable[[list[Tensor], list[Tensor], float, bool, list[Tensor] | None], list[Tensor]]
"""(buffers updated in place, gradients, momentum, nesterov, alive) -> directions; gradients are never mutated.

`alive` holds a scalar 0.0 or 1.0 for each parameter: a buffer of 0.0 must not change (its gradient is given as zero);
None: all change.
"""


@dataclass(frozen=True)
class Buffer:
    """State that a stage keeps for every block: float32, or float64 for float64 parameters.

    Attributes:
        shape: of one block's.
        start: what it holds before the first step; `eye` needs a square; `normal` is the same for every block.
    """

    shape: tuple[int, ...]
    start: Literal["zeros", "ones", "eye", "normal"] = "zeros"

    def new(self, blocks: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(blocks, *shape), as it starts."""
        if self.start == "eye":
            return torch.eye(self.shape[-1], dtype=dtype, device=device).expand(blocks, *self.shape).clone()
        if self.start == "normal":  # drawn on the CPU, so that every device starts from the same
            values = torch.randn(self.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            return values.to(dtype=dtype, device=device).expand(blocks, *self.shape).clone()
        fill = torch.ones if self.start == "ones" else torch.zeros
        return fill((blocks, *self.shape), dtype=dtype, device=device)


Length = Literal["full_rank", "measured", "unit", "own", "gradient"]

Buffers = Callable[[int, int, Settings], dict[str, Buffer]]
"""(rows, cols of a block, settings) -> name -> buffer."""


@dataclass
class Step:
    """What a stage sees beside the blocks that flow through it, and where it leaves what others need.

    Attributes:
        settings: of the parameter group.
        lr: learning rate.
        length: factor of the step without the learning rate, see `rlspec.optim.stages.scale.step_scale`.
        count: steps taken, this one included: 1 in the first.
        compute_dtype: of the iterations.
        gradient: (batch, rows, cols), what backward left; for rules of which a stage `reads_gradient`.
        state: buffer name -> (batch, *shape). A stage assigns a new tensor and never mutates the one that it finds.
        normalised: blocks as the filter saw them, for telemetry.
        energy: (batch,), singular directions that passed the filter.
        decay: (batch, 1 or rows, 1 or cols), factor of the weight decay; None: 1.
    """

    settings: Settings
    lr: float
    length: float
    count: int
    compute_dtype: torch.dtype
    gradient: Tensor | None = None
    state: dict[str, Tensor] = field(default_factory=dict)
    normalised: Tensor | None = None
    energy: Tensor | None = None
    decay: Tensor | None = None


class _WithOptions:
    """What stages of both kinds share: options, read from the function's signature."""

    function: Callable[..., Any]
    check: Callable[..., None] | None

    @cached_property
    def options(self) -> dict[str, Any]:
        """Name -> default of every option; `inspect.Parameter.empty` for those that the optimizer must give."""
        parameters = inspect.signature(self.function).parameters.values()
        return {entry.name: entry.default for entry in parameters if entry.kind is entry.KEYWORD_ONLY}

    def arguments(self, settings: Settings) -> dict[str, Any]:
        """The options' values in a parameter group."""
        return {name: settings.get(name, default) for name, default in self.options.items()}


def _check_kind(name: str, value: Any, default: Any) -> None:
    """Refuse what no option of its kind can be: text for a switch, None for what has a value, NaN and Inf."""
    if isinstance(default, bool) and not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r}: must be True or False")
    if isinstance(value, str) and isinstance(default, int | float):
        raise ConfigError(f"{name}={value!r}: must be a number")
    if value is None and default is not None:
        raise ConfigError(f"{name}=None: must have a value; leave it out for the rule's own")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}={value}: must be finite")


@dataclass(frozen=True)
class Stage(_WithOptions):
    """One function of a composition.

    Attributes:
        function: (blocks (batch, rows, cols), step, *, options) -> blocks of the same shape; never mutates its input.
        buffers: what it keeps.
        reads_gradient: whether it needs `Step.gradient`.
        check: raises ConfigError on options that cannot work; called with the options as keywords.
        iterates: whether its blocks come in `Step.compute_dtype`, which may be bfloat16; otherwise they have the
            buffers' dtype, so that a stage can mix the two whatever the arithmetic of the iterations before it.
        bounded: whether it sends singular values to 1 and below, as Muon does, so that nobody need measure them.
        sets_decay: whether it assigns `Step.decay`.
    """

    function: Callable[..., Tensor]
    buffers: Buffers | None = None
    reads_gradient: bool = False
    check: Callable[..., None] | None = None
    iterates: bool = False
    bounded: bool = False
    sets_decay: bool = False

    def __call__(self, blocks: Tensor, step: Step) -> Tensor:
        """Run the function with the options of the step's settings."""
        return self.function(blocks, step, **self.arguments(step.settings))


def stage(
    buffers: Buffers | None = None,
    *,
    reads_gradient: bool = False,
    check: Callable[..., None] | None = None,
    iterates: bool = False,
    bounded: bool = False,
    sets_decay: bool = False,
) -> Callable[[Callable[..., Tensor]], Stage]:
    """Turn a function into a stage: `@stage()` above it; the arguments are `Stage`'s."""
    return lambda function: Stage(function, buffers, reads_gradient, check, iterates, bounded, sets_decay)


@dataclass
class Pair:
    """A batch of LoRA pairs in one step: `W = W_0 + scaling B A`, A (batch, rank, in), B (batch, out, rank).

    Attributes:
        a: the factors A as they are.
        b: the factors B.
        direction_a: momentum of A's gradient, after Nesterov's form where it is asked for.
        direction_b: of B's.
        gradient_a: A's gradient.
        gradient_b: B's.
        scaling: alpha / rank, or as peft has it.
    """

    a: Tensor
    b: Tensor
    direction_a: Tensor
    direction_b: Tensor
    gradient_a: Tensor
    gradient_b: Tensor
    scaling: float


PairFunction = Callable[..., tuple[Tensor, Tensor]]
"""(pair, step, *, options) -> updates of A and of B, to be subtracted after multiplication with lr.

Buffers of a pair are declared as functions of (rank, in, out): see `PairStage`.
"""


@dataclass(frozen=True)
class PairStage(_WithOptions):
    """The update of both factors of a LoRA layer together.

    Attributes:
        function: a `PairFunction`.
        buffers_a: (rank, in, settings) -> buffers kept with A; their names must differ from those of B.
        buffers_b: (out, rank, settings) -> buffers kept with B.
        check: raises ConfigError on options that cannot work.
    """

    function: PairFunction
    buffers_a: Buffers | None = None
    buffers_b: Buffers | None = None
    check: Callable[..., None] | None = None

    def __call__(self, pair: Pair, step: Step) -> tuple[Tensor, Tensor]:
        """Run the function with the options of the step's settings."""
        return self.function(pair, step, **self.arguments(step.settings))


@dataclass(frozen=True)
class Kernel(_WithOptions):
    """A whole step in one call, decay included, for what torch has fused: faster, with its bits.

    Attributes:
        function: (targets, gradients, buffers by name, step counters, found_inf, *, options) -> None; all in place.
            `found_inf` is a scalar 1.0 where nothing may change, else 0.0; None: known to be finite.
        buffers: names of what it keeps, each of the parameter's shape.
        check: raises ConfigError on options that cannot work.
    """

    function: Callable[..., None]
    buffers: tuple[str, ...]
    check: Callable[..., None] | None = None


Kind = Literal["elementwise", "matrix", "pair"]


@dataclass(frozen=True)
class Rule:
    """One composition: a line of the table.

    It is one of three kinds (`kind`), which differ in what a block is: a matrix, a whole parameter of any shape
    (`elementwise`), or both factors of a LoRA layer (`pair`).

    Attributes:
        name: the word a user writes.
        source: where the formulas come from.
        stages: what happens to the momentum's blocks, in order.
        symmetry: the largest group under which the map from gradients to updates is equivariant, first x second side:
            `O` rotations and reflections, `S` signed permutations, `P` permutations, `D` signs, `-` none. State that
            starts at zero or at the identity moves along. The battery of tests holds every rule to it.
        sides: which sides the claim speaks of, where a rule treats the short one differently.
        centered: whether columns of updates sum to zero, whatever one row is added to all rows of the gradient.
        momentum: how gradients are averaged; None: a stage does it.
        before: what happens to the gradient's blocks before the momentum.
        length: what `match_rms_adamw` does, see `stages.scale.step_scale`: `full_rank` and `measured` count
            directions, `unit` counts entries of size 1; `own` leaves the length as it is because it is AdamW's already,
            `gradient` because it is the gradient's, which no rule of shapes can match.
        pair: the joint update of a LoRA pair; such a rule has no stages.
        elementwise: whether the stages take parameters of any shape, whole: split and bounds do not apply.
        kernel: of an elementwise rule, in place of momentum and stages.
        gates: whether the filter can stop an update altogether, which is watched.
    """

    name: str
    source: str
    stages: tuple[Stage, ...] = ()
    symmetry: str = "S x S"
    momentum: Momentum | None = None
    before: tuple[Stage, ...] = ()
    length: Length = "full_rank"
    pair: PairStage | None = None
    gates: bool = False
    sides: Literal["rows x columns", "short x long"] = "rows x columns"
    centered: bool = False
    elementwise: bool = False
    kernel: Kernel | None = None

    @property
    def kind(self) -> Kind:
        """What the rule acts on."""
        if self.pair is not None:
            return "pair"
        return "elementwise" if self.elementwise or self.kernel is not None else "matrix"

    @property
    def spectral(self) -> bool:
        """Whether the rule acts on matrices, alone or in pairs."""
        return self.kind != "elementwise"

    @property
    def width(self) -> int:
        """Parameters that move together."""
        return 2 if self.kind == "pair" else 1

    @property
    def bounded(self) -> bool:
        """Whether no direction of an update is longer than Muon's before `adjust_lr`; pairs count as a whole matrix."""
        return self.kind == "pair" or bool(self.stages) and self.stages[-1].bounded

    @property
    def all_stages(self) -> tuple[Stage | PairStage | Kernel, ...]:
        """Those on gradients, then those on the momentum; or the one of a pair rule, or the kernel."""
        alone = self.pair or self.kernel
        return self.before + self.stages if alone is None else (alone,)

    @property
    def reads_gradient(self) -> bool:
        """Whether a stage needs the gradient beside the momentum."""
        return any(entry.reads_gradient for entry in self.stages)

    @property
    def sets_decay(self) -> bool:
        """Whether a stage scales the weight decay."""
        return any(entry.sets_decay for entry in self.stages)

    @cached_property
    def options(self) -> dict[str, Any]:
        """Name -> default of every option of its stages."""
        found: dict[str, Any] = {}
        for entry in self.all_stages:
            found |= entry.options
        return found

    def check(self, settings: Settings) -> None:
        """Let every stage refuse what it cannot work with.

        Raises:
            ConfigError: naming the option.
        """
        for entry in self.all_stages:
            chosen = entry.arguments(settings)
            for name, value in chosen.items():
                _check_kind(name, value, entry.options[name])
            if entry.check is not None:
                entry.check(**chosen)

    def buffers(
        self, rows: int, cols: int, settings: Settings, factor: Literal["", "a", "b"] = ""
    ) -> dict[str, Buffer]:
        """What all stages keep for a block, or a pair for its `factor`; the momentum buffer is not among it."""
        if self.pair is not None:
            declared = [self.pair.buffers_a if factor == "a" else self.pair.buffers_b]
        else:
            declared = [entry.buffers for entry in (*self.before, *self.stages)]
        found: dict[str, Buffer] = {}
        for buffers in declared:
            found |= buffers(rows, cols, settings) if buffers is not None else {}
        return found

    def state_values(
        self, blocks: int, rows: int, cols: int, settings: Settings, factor: Literal["", "a", "b"] = ""
    ) -> int:
        """Values of optimizer state of a parameter of that many blocks."""
        if self.kernel is not None:
            return len(self.kernel.buffers) * blocks * rows * cols
        kept = sum(math.prod(buffer.shape) for buffer in self.buffers(rows, cols, settings, factor).values())
        return blocks * ((rows * cols if self.momentum is not None else 0) + kept)


def ema(
    buffers: list[Tensor], gradients: list[Tensor], momentum: float, nesterov: bool, alive: list[Tensor] | None = None
) -> list[Tensor]:
    """Exponential moving average, with torch.optim.Muon's Nesterov form."""
    if alive is None:
        torch._foreach_lerp_(buffers, gradients, 1 - momentum)
    else:
        torch._foreach_lerp_(buffers, gradients, [flag * (1 - momentum) for flag in alive])
    return list(torch._foreach_lerp(gradients, buffers, momentum)) if nesterov else buffers


def heavy_ball(
    buffers: list[Tensor], gradients: list[Tensor], momentum: float, nesterov: bool, alive: list[Tensor] | None = None
) -> list[Tensor]:
    """`M <- momentum M + G`, with Keller Jordan's Nesterov form `G + momentum M`."""
    if alive is None:
        torch._foreach_mul_(buffers, momentum)
    else:
        torch._foreach_mul_(buffers, [torch.where(flag > 0, momentum, 1.0) for flag in alive])
    torch._foreach_add_(buffers, gradients)
    return list(torch._foreach_add(gradients, buffers, alpha=momentum)) if nesterov else buffers
