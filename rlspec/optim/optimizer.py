"""One optimizer for every rule of the table, in the shape of torch's own optimizers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from rlspec.errors import ConfigError
from rlspec.optim.checks import COMPUTE_DTYPES, Group, check_group, check_stored, named_parameters
from rlspec.optim.layout import block_shape, merge_blocks, split_blocks
from rlspec.optim.newton_schulz import NORMALISERS
from rlspec.optim.rules import Variance, get_rule, step_scale
from rlspec.optim.telemetry import Recorder

if TYPE_CHECKING:
    from rlspec.optim.symmetry import SymmetryMap

HALF = (torch.bfloat16, torch.float16)


@dataclass
class _Entry:
    """A parameter in one step. `target` is what moves: the parameter, or its float32 master copy."""

    param: Tensor
    target: Tensor
    gradient: Tensor
    state: dict[str, Tensor]


class SpectralOptimizer(torch.optim.Optimizer):
    """Runs the rules of `rlspec.optim.rules.RULES`, one per parameter group.

    Every keyword is the default of a parameter-group entry of the same name. State is float32 (float64 for float64
    parameters) whatever the parameter's dtype; bf16 and fp16 parameters get a float32 master copy in the state, which
    is what moves. Weight decay is decoupled: `p *= 1 - lr * weight_decay` before the update. A parameter whose gradient
    is None is skipped; so is one whose gradient has NaN or Inf, which is counted and warned about once. Gradients are
    never mutated.

    AdamW groups equal torch.optim.AdamW bit for bit. So does rule `muon` on whole matrices equal torch.optim.Muon
    (`adjust_lr` original or match_rms_adamw), given `normalise="torch"` and `compute_dtype="bfloat16"`, which is how
    torch computes; the defaults are more accurate.

    Args:
        params: parameters, (name, parameter) pairs, or groups of them. Names are stored and checked on loading.
        lr: learning rate.
        rule: name in `RULES`.
        role: under which name telemetry reports the group.
        weight_decay: decoupled.
        betas: of AdamW.
        eps: of AdamW.
        momentum: of spectral rules, an exponential moving average.
        nesterov: of spectral rules.
        ns_steps: Newton-Schulz iterations.
        promotion_steps: Pion's k_p, 0 to ns_steps, or "auto".
        adjust_lr: length of a spectral step, see `rlspec.optim.rules.step_scale`.
        paper_scale: s of adjust_lr "paper".
        num_heads: blocks a matrix is cut into; 1 is the whole matrix.
        head_axis: 0 cuts rows (q, k, v), 1 columns (o).
        normalise: name in `NORMALISERS`.
        compute_dtype: of the Newton-Schulz iteration; "auto" is bfloat16 on CUDA, else float32; float64 for float64
            parameters.
        workspace_bytes: bound on the float32 blocks filtered in one batch (at least one parameter); a step's peak
            extra memory is a small multiple of it.
        telemetry_every: collect telemetry every so many steps; 0 only on request (`collect_telemetry = True`).

    Raises:
        ConfigError: on a group that cannot work, naming the parameter.
    """

    collect_telemetry: bool
    symmetry: SymmetryMap | None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        rule: str = "muon",
        role: str = "all",
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        momentum: float = 0.95,
        nesterov: bool = False,
        ns_steps: int = 5,
        promotion_steps: int | Literal["auto"] = 0,
        adjust_lr: str = "match_rms_adamw",
        paper_scale: float = 5.0,
        num_heads: int = 1,
        head_axis: int = 0,
        normalise: str = "frobenius",
        compute_dtype: str = "auto",
        workspace_bytes: int = 1 << 28,
        telemetry_every: int = 0,
    ) -> None:
        defaults = {
            "lr": lr, "rule": rule, "role": role, "weight_decay": weight_decay, "betas": betas, "eps": eps,
            "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps, "promotion_steps": promotion_steps,
            "adjust_lr": adjust_lr, "paper_scale": paper_scale, "num_heads": num_heads, "head_axis": head_axis,
            "normalise": normalise, "compute_dtype": compute_dtype,
        }  # fmt: skip
        self._reset_transient_state()
        self.workspace_bytes = workspace_bytes
        self.telemetry_every = telemetry_every
        super().__init__(params, defaults)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; keys that it leaves out take the optimizer's defaults.

        Raises:
            ConfigError: if the group's settings are invalid or do not fit one of its parameters.
        """
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
        except ConfigError:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._steps += 1
        asked = self.telemetry_every > 0 and self._steps % self.telemetry_every == 0
        roles = {group["role"] for group in self.param_groups if get_rule(group["rule"]).spectral}
        self._recorder.begin(asked or self.collect_telemetry, roles)
        self.collect_telemetry = False
        finite = self._finite_gradients()
        for group in self.param_groups:
            for chunk in self._chunks(group, finite):
                if get_rule(group["rule"]).spectral:
                    self._spectral_step(group, chunk)
                else:
                    self._adamw_step(group, chunk)
        self._recorder.end()
        return loss

    def telemetry(self) -> dict[str, dict[str, float]]:
        """Numbers of the newest collected step, by role.

        `change_rms` is the root mean square of the weights' actual change and `update_rms` the same over lr (AdamW's is
        about 0.2 to 1), `weight_rms` that of the weights; for spectral roles also the means over blocks of
        `stable_rank` (momentum) and `pass_energy` (directions that passed), and `gated_share`, the share of blocks with
        no update. `skipped` counts all updates left out because of NaN or Inf.
        """
        return self._recorder.latest()

    def inactive_spectral_groups(self, steps: int = 10) -> list[str]:
        """Spectral roles in which no block passed its filter in the last `steps` steps (or that have no parameters).

        Such a role is being trained by weight decay alone. Waits for the device; call it every few steps.
        """
        present: dict[str, int] = defaultdict(int)
        for group in self.param_groups:
            if get_rule(group["rule"]).spectral:
                present[group["role"]] += len(group["params"])
        idle = self._recorder.idle_steps()
        return [role for role, count in present.items() if count == 0 or idle.get(role, 0) >= steps]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, keeping its float32 tensors whatever the parameters' dtype (torch would cast them).

        Raises:
            CheckpointError: if the stored names, rules, splits or shapes are not this optimizer's, naming the offender.
        """
        check_stored(state_dict, self.param_groups, _initial_state)
        super().load_state_dict(state_dict)
        stored = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(stored, params, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor) and self.state[param][key].dtype != value.dtype:
                    self.state[param][key] = value.detach().clone().to(self.state[param][key].device)

    def __getstate__(self) -> dict[str, Any]:
        kept = {"workspace_bytes": self.workspace_bytes, "telemetry_every": self.telemetry_every}
        return super().__getstate__() | kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_recorder" not in self.__dict__:  # a fresh copy or unpickled, not load_state_dict
            self._reset_transient_state()
        super().__setstate__(state)

    def _reset_transient_state(self) -> None:
        self._recorder = Recorder()
        self._steps = 0
        self.collect_telemetry = False
        self.symmetry = None

    def _finite_gradients(self) -> set[Tensor]:
        """Parameters that can be updated in this step. Waits for the device once per device and dtype."""
        roles = {param: (group["role"], name) for group in self.param_groups for name, param in named_parameters(group)}
        by_kind: dict[Any, list[Tensor]] = defaultdict(list)
        for param in roles:
            if param.grad is not None and param.numel():
                if param.grad.is_sparse:
                    raise ConfigError(f"{roles[param][1]}: sparse gradients are not supported; use sparse=False")
                by_kind[param.grad.device, param.grad.dtype].append(param)
        finite = set()
        for params in by_kind.values():
            gradients = [param.grad for param in params if param.grad is not None]
            norms = torch.stack(list(torch._foreach_norm(gradients))).isfinite().tolist()
            for param, gradient, good in zip(params, gradients, norms, strict=True):
                if good or bool(gradient.isfinite().all()):  # the norm of a finite gradient may overflow
                    finite.add(param)
                else:
                    self._recorder.skip(*roles[param])
        return finite

    def _chunks(self, group: Group, finite: set[Tensor]) -> Iterator[list[_Entry]]:
        """Entries of a group that can be filtered together: equal blocks, dtype and device, within the workspace."""
        alike: dict[Any, list[Tensor]] = defaultdict(list)
        for param in group["params"]:
            if param in finite:
                shape = _blocks(param, group)[1:] if get_rule(group["rule"]).spectral else ()
                alike[shape, param.dtype, param.device].append(param)
        for params in alike.values():
            chunk: list[_Entry] = []
            room = self.workspace_bytes
            for param in params:
                room -= 4 * param.numel()
                if chunk and room < 0:
                    yield chunk
                    room, chunk = self.workspace_bytes - 4 * param.numel(), []
                chunk.append(self._entry(param, group))
            yield chunk

    def _entry(self, param: Tensor, group: Group) -> _Entry:
        state = self.state[param]
        if not state:
            state.update(_initial_state(param, group))
        assert param.grad is not None
        target = state.get("master", param)
        return _Entry(param, target, param.grad.to(target.dtype), state)

    def _spectral_step(self, group: Group, entries: list[_Entry]) -> None:
        lr, targets = float(group["lr"]), [entry.target for entry in entries]
        updates, factor = self._spectral_updates(group, entries)
        with self._recorder.measure(group["role"], lr, targets):
            if group["weight_decay"]:
                torch._foreach_mul_(targets, 1 - lr * group["weight_decay"])
            torch._foreach_add_(targets, updates, alpha=-(lr * factor))
        _copy_masters(entries)

    def _spectral_updates(self, group: Group, entries: list[_Entry]) -> tuple[list[Tensor], float]:
        """The composition: momentum, split, normalise, filter, variance, scale per block, merge."""
        rule = get_rule(group["rule"])
        assert rule.momentum is not None
        buffers, gradients = (
            [entry.state["momentum_buffer"] for entry in entries],
            [entry.gradient for entry in entries],
        )
        directions = rule.momentum(buffers, gradients, group["momentum"], group["nesterov"])
        parts = [split_blocks(direction, group["num_heads"], group["head_axis"]) for direction in directions]
        blocks = parts[0] if len(parts) == 1 else torch.cat(parts)
        normalised = NORMALISERS[group["normalise"]](blocks, _compute_dtype(group, blocks))
        filtered, energy = rule.build_filter(group)(normalised)
        self._recorder.blocks(group["role"], normalised, energy)
        filtered = filtered.to(blocks.dtype)
        if rule.variance is not None:
            filtered = _apply_variance(rule.variance, filtered, entries, group)
        measured = energy if rule.energy == "measured" else None
        factor, factors = step_scale(
            group["adjust_lr"], *blocks.shape[1:], energy=measured, paper_scale=group["paper_scale"]
        )
        if factors is not None:
            filtered = filtered * factors.to(filtered.dtype)[:, None, None]
        merged = [
            merge_blocks(part, entry.param.shape, group["head_axis"])
            for part, entry in zip(filtered.split(group["num_heads"]), entries, strict=True)
        ]
        return merged, factor

    def _adamw_step(self, group: Group, entries: list[_Entry]) -> None:
        targets = [entry.target for entry in entries]
        with self._recorder.measure(group["role"], float(group["lr"]), targets):
            adamw(
                targets,
                [entry.gradient for entry in entries],
                [entry.state["exp_avg"] for entry in entries],
                [entry.state["exp_avg_sq"] for entry in entries],
                [],
                [entry.state["step"] for entry in entries],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
        _copy_masters(entries)


def _blocks(param: Tensor, group: Group) -> tuple[int, int, int]:
    return block_shape(param.shape, group["num_heads"], group["head_axis"])


def _state_dtype(param: Tensor) -> torch.dtype:
    return torch.float64 if param.dtype == torch.float64 else torch.float32


def _compute_dtype(group: Group, blocks: Tensor) -> torch.dtype:
    if group["compute_dtype"] != "auto":
        return COMPUTE_DTYPES[group["compute_dtype"]]
    if blocks.dtype == torch.float64:
        return torch.float64
    return torch.bfloat16 if blocks.device.type == "cuda" else torch.float32


def _initial_state(param: Tensor, group: Group) -> dict[str, Tensor]:
    rule, dtype = get_rule(group["rule"]), _state_dtype(param)
    state: dict[str, Tensor] = {}
    zeros = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
    if rule.spectral:
        state["momentum_buffer"] = zeros
        if rule.variance is not None:
            count, rows, cols = _blocks(param, group)
            shape = (count, *rule.variance.state_shape(rows, cols))
            state["variance"] = torch.zeros(shape, dtype=dtype, device=param.device)
    else:
        state.update(step=torch.zeros((), dtype=torch.float32), exp_avg=zeros, exp_avg_sq=torch.zeros_like(zeros))
    if param.dtype in HALF:
        state["master"] = param.detach().to(torch.float32)
    return state


def _apply_variance(variance: Variance, filtered: Tensor, entries: list[_Entry], group: Group) -> Tensor:
    states = [entry.state["variance"] for entry in entries]
    joined = torch.cat(states)
    rescaled = variance.apply(filtered, joined, group)
    for state, updated in zip(states, joined.split([len(state) for state in states]), strict=True):
        state.copy_(updated)
    return rescaled


def _copy_masters(entries: list[_Entry]) -> None:
    for entry in entries:
        if entry.target is not entry.param:
            entry.param.copy_(entry.target)
