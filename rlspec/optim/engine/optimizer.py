"""One optimizer for every rule of the table, in the shape of torch's own optimizers."""

from __future__ import annotations

import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from rlspec.errors import ConfigError
from rlspec.optim.composition import Rule
from rlspec.optim.engine.batches import batches, follow_weights, initial_state, step_device
from rlspec.optim.engine.checks import (
    Group,
    check_edited,
    check_group,
    check_keys,
    check_modes,
    check_options,
    check_reach,
    check_running,
    check_stored,
    named_parameters,
    parameter_name,
    started,
)
from rlspec.optim.engine.finite import Flag
from rlspec.optim.engine.telemetry import Recorder
from rlspec.optim.engine.updates import LAYOUT_KEYS, Entry, apply_updates, layout, run_kernel, updates
from rlspec.optim.engine.usable import Looks
from rlspec.optim.kernels.autocast import without_autocast
from rlspec.optim.kernels.layout import merge_blocks, split_blocks
from rlspec.optim.rules import get_rule
from rlspec.optim.settings import OptimizerSettings, Running
from rlspec.optim.settings import defaults as declared_defaults
from rlspec.optim.sharding.shards import is_dtensor, local
from rlspec.optim.sharding.state import cut_state, describe
from rlspec.optim.stages.constraints import constrain

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from rlspec.optim.engine.shared import Distribution
    from rlspec.optim.map.spec import SymmetryMap

REPORT_UNUSED_AFTER = 10
TelemetryCallback = Callable[[int, dict[str, dict[str, float]]], None]
SCHEDULED = ("params", "param_names", "lr", "momentum", "betas", "weight_decay", "initial_lr", "max_lr", "min_lr")
"""Keys of a group that may be others in every step."""


class SpectralOptimizer(torch.optim.Optimizer):
    """Runs the rules of `rlspec.optim.rules.RULES`, one per parameter group.

    Every keyword is the default of a parameter-group entry of the same name. State is float32 (float64 for float64
    parameters) whatever the parameter's dtype; bf16 and fp16 parameters get a float32 master copy in the state, which
    is what moves, and takes over what others write into the parameter between steps; a model that is cast between
    steps keeps its momentum. Weight decay is decoupled:
    `p *= 1 - lr * weight_decay` before the update. A parameter whose gradient is None is skipped; so is one whose
    gradient has NaN or Inf, which is counted and warned about once. Gradients are never mutated.

    AdamW groups equal torch.optim.AdamW(fused=True) bit for bit. So does rule `muon` on whole matrices equal
    torch.optim.Muon (`adjust_lr` original or match_rms_adamw), given `normalise="torch"` and
    `compute_dtype="bfloat16"`, which is how torch computes; the defaults are more accurate, and faster.

    On CUDA nothing in a step waits for the device: whether a gradient is finite is decided there, each matrix is masked
    by its own flag, and AdamW's parameters of a batch are skipped together.

    Args:
        params: parameters, (name, parameter) pairs, or groups of them. Names are stored and checked on loading.
        lr: learning rate.
        rule: name in `RULES`.
        role: under which name telemetry reports the group.
        num_heads: blocks a matrix is cut into; 1 is the whole matrix.
        head_axis: 0 cuts rows (q, k, v), 1 columns (o).
        stacked: the first axis of a parameter with three or more axes counts matrices (experts).
        transposed: parameters are stored (in, out), as Conv1D's; rows are outputs for the rule all the same.
        interleave: lines of a block that lie together where blocks alternate; 0: they do not.
        scaling: of the LoRA pairs in a group with a pair rule, whose parameters are A, B, A, B, ...
        process_group: processes that hold copies of the parameters and average their gradients, as under DDP: matrices
            are dealt to them, and all of them must call `step`. Parameters of `fully_shard` need none.
        maximize: climb, as in torch's optimizers, whose `foreach`, `fused`, `capturable` and `differentiable` may be
            given where they are False or None.
        settings: fields of `OptimizerSettings` and `Running` in `rlspec.optim.settings`, which say what they do; and
            options of the rules' stages, by name (`Rule.options`), for all groups whose rule has them.

    Raises:
        ConfigError: on a group that cannot work, naming the parameter.
    """

    collect_telemetry: bool
    symmetry: SymmetryMap | None
    rates: str | None
    process_group: ProcessGroup | None

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        *,
        rule: str = "muon",
        role: str = "all",
        num_heads: int = 1,
        head_axis: int = 0,
        stacked: bool = False,
        transposed: bool = False,
        interleave: int = 0,
        scaling: float = 1.0,
        process_group: ProcessGroup | None = None,
        maximize: bool = False,
        **settings: Any,
    ) -> None:
        check_modes(settings)
        own = {"lr": lr, "rule": rule, "role": role, "num_heads": num_heads, "head_axis": head_axis}
        own |= {"stacked": stacked, "transposed": transposed, "interleave": interleave, "scaling": scaling}
        own |= {"maximize": maximize}
        own |= {name: settings.pop(name, default) for name, default in declared_defaults(OptimizerSettings).items()}
        running = {name: settings.pop(name, default) for name, default in declared_defaults(Running).items()}
        self._reset_transient_state()
        self.workspace_bytes: int = running["workspace_bytes"]
        self.telemetry_every: int = running["telemetry_every"]
        self.check_finite: bool = running["check_finite"]
        self.skip_zero_gradients: bool = running["skip_zero_gradients"]
        if isinstance(params, torch.nn.Module):
            raise ConfigError("params is a module; give model.named_parameters(), or the model to build_optimizer")
        check_running(running)
        self.process_group = process_group
        super().__init__(params, own | settings)
        check_options(settings, self.param_groups, own)
        check_reach(self.param_groups)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group; keys that it leaves out take the optimizer's defaults.

        Where `build_optimizer` made this, parameters of fewer than two dimensions become a group of their own that has
        AdamW without weight decay, as there, unless the group says a rule. Its rate is the optimizer's `lr` where the
        group gives none, without `adamw_lr_scale`.

        Raises:
            ConfigError: if the group's settings are invalid or do not fit one of its parameters.
        """
        if isinstance(param_group, dict):
            check_modes(param_group)
            param_group = self._named(param_group)
            check_keys(param_group, self.defaults)
            if self.symmetry is not None and "rule" not in param_group and not isinstance(param_group["params"], set):
                for part in _vectors_apart(param_group, self.defaults["rule"]):
                    self.add_param_group(part)
                return
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups[-1])
        except ConfigError:
            self.param_groups.pop()
            raise

    def _named(self, group: Group) -> Group:
        """With names, which torch wants of every group or of none; code that unfreezes layers gives none."""
        params, number = group.get("params"), len(self.param_groups)
        if "param_names" in group or not any("param_names" in each for each in self.param_groups):
            return group
        if isinstance(params, set) or not isinstance(params, Iterable):  # torch says why not
            return group
        given = [params] if isinstance(params, Tensor) else list(params)
        if all(isinstance(each, Tensor) for each in given):
            given = [(f"group {number}, parameter {k}", each) for k, each in enumerate(given)]
        return {**group, "params": given}

    @torch._disable_dynamo  # a compiled step runs as it is written
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; returns the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with without_autocast(param for group in self.param_groups for param in group["params"]):
            self._step()
        return loss

    def _step(self) -> None:
        self._steps += 1
        self._check_edits()
        follow_weights(self.param_groups, self.state)
        asked = self.telemetry_every > 0 and self._steps % self.telemetry_every == 0
        gating = {group["role"] for group in self.param_groups if get_rule(group["rule"]).spectral}
        self._recorder.begin(asked or self.collect_telemetry, gating)
        self.collect_telemetry = False
        shared = self._distribution()
        flags = self._alive(shared)
        for group in self.param_groups:
            if get_rule(group["rule"]).kind == "pair":
                self._report_half_pairs(group)
        if shared is None:
            self._update_all(flags)
            collected = self._recorder.end()
        else:
            shared.update(self.param_groups, flags, self.state, self._recorder, self.workspace_bytes, self._update)
            collected = self._recorder.end(shared.least, shared.totals)
        for callback in list(self._telemetry_callbacks.values()) if collected else ():
            callback(self._steps, self.telemetry())
        if self._steps == REPORT_UNUSED_AFTER:
            self._report_unused()

    def register_telemetry_callback(self, callback: TelemetryCallback) -> RemovableHandle:
        """Call `callback(step, numbers)` after every step of which telemetry was collected; `handle.remove()` ends it.

        Steps are counted from 1 in this process; copies and unpickled optimizers start without callbacks.
        """
        handle = RemovableHandle(self._telemetry_callbacks)
        self._telemetry_callbacks[handle.id] = callback
        return handle

    def telemetry(self) -> dict[str, dict[str, float]]:
        """Numbers of the newest collected step, by role; the same for every rule.

        `change_rms` is the root mean square of the weights' actual change and `update_rms` the same over lr (AdamW's is
        about 0.2 to 1), `weight_rms` that of the weights. For matrices also `update_spectral`, the largest singular
        value of a block's change over lr (Muon's with AdamW's RMS: 0.2 sqrt(max(rows, cols))), and the largest operator
        norm of weights from RMS to the maximum, `weight_rms_to_inf` (of the output head, what Scion's authors watch);
        and the means over blocks of `stable_rank` (of the momentum), `pass_energy` (directions that passed) and
        `gated_share`, the share of blocks with no update. Singular values are estimates, never too large and up to 6 %
        too small where many crowd at the top. `skipped` counts all updates left out because of NaN or Inf.
        """
        return self._recorder.latest()

    def zero_steps(self) -> int:
        """How many steps `skip_zero_gradients` left out; in the telemetry of one of them no role has numbers."""
        return self._recorder.zero_steps()

    def inactive_spectral_groups(self, steps: int = 10) -> list[str]:
        """Spectral roles in which no block passed its filter in the last `steps` steps (or that have no parameters).

        Such a role is being trained by weight decay alone. Waits for the device; call it every few steps.
        """
        self._watched = True
        present: dict[str, int] = defaultdict(int)
        for group in self.param_groups:
            if get_rule(group["rule"]).spectral:
                present[group["role"]] += len(group["params"])
        idle = self._recorder.idle_steps()
        return [role for role, count in present.items() if count == 0 or idle.get(role, 0) >= steps]

    def without_updates(self) -> list[str]:
        """Names of parameters that have had no usable gradient so far."""
        return [
            name
            for group in self.param_groups
            for name, param in named_parameters(group)
            if not started(self.state.get(param))
        ]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state in the dtypes of this optimizer's own, whatever the parameters' (to which torch would cast it).

        Raises:
            CheckpointError: if the stored names, rules, splits or shapes are not this optimizer's, naming the offender.
        """
        before, after = self._optimizer_load_state_dict_pre_hooks, self._optimizer_load_state_dict_post_hooks
        state_dict = state_dict.copy()
        for hook in before.values():
            changed = hook(self, state_dict)
            state_dict = state_dict if changed is None else changed
        self._optimizer_load_state_dict_pre_hooks = OrderedDict()
        self._optimizer_load_state_dict_post_hooks = OrderedDict()
        try:
            self._load(state_dict)
        finally:
            self._optimizer_load_state_dict_pre_hooks, self._optimizer_load_state_dict_post_hooks = before, after
        for done in after.values():
            done(self)

    def _load(self, state_dict: dict[str, Any]) -> None:
        """Load what the hooks made of a stored state."""
        check_stored(state_dict, self.param_groups, initial_state)
        stored = [index for group in state_dict["param_groups"] for index in group["params"]]
        if any(is_dtensor(param) for group in self.param_groups for param in group["params"]):
            state_dict = cut_state(state_dict, self.param_groups, initial_state)
        names = [group.get("param_names") for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, own_names in zip(self.param_groups, names, strict=True):
            if own_names is not None:  # what is around a model may have another name in the state
                group["param_names"] = own_names
        params = [(*each, group) for group in self.param_groups for each in enumerate(group["params"])]
        for index, (position, param, group) in zip(stored, params, strict=True):
            own = initial_state(describe(param), group, position)
            for key, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor):
                    device = step_device(param, group) if key == "step" else param.device
                    dtype = own[key].dtype if key in own else value.dtype
                    if self.state[param][key].dtype != dtype or self.state[param][key].device != device:
                        self.state[param][key] = value.detach().clone().to(device, dtype)

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in (*declared_defaults(Running), "symmetry", "rates")}
        return super().__getstate__() | kept

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_recorder" not in self.__dict__:  # a fresh copy or unpickled, not load_state_dict
            self._reset_transient_state()
        super().__setstate__(state)
        for group in self.param_groups:  # states of earlier versions lack the newest settings
            for key in OF_A_GROUP:
                group.setdefault(key, self.defaults[key])

    def _reset_transient_state(self) -> None:
        self._recorder = Recorder()
        self._telemetry_callbacks: OrderedDict[int, TelemetryCallback] = OrderedDict()
        self._steps = 0
        self._warned_of_half = False
        self._watched = False  # somebody asks for inactive roles, and need not be told
        self._checked: dict[int, dict[str, Any]] = {}
        self._cycled: dict[int, float] = {}  # first beta of each group in the last step
        self._shared: Distribution | None = None
        self._shared_as: list[int] = []
        self.process_group = None
        self.collect_telemetry = False
        self.symmetry = None
        self.rates = None

    def _check_edits(self) -> None:
        """Check groups in the first step, as frameworks may have sharded parameters in place, and edited ones.

        What schedulers drive is theirs: as in torch, nobody looks at it again.
        """
        for number, group in enumerate(self.param_groups):
            cycled = group["betas"][0]
            if "max_momentum" in group and self._cycled.get(number) != cycled:
                group["momentum"] = cycled  # OneCycleLR and CyclicLR cycle the first beta of whoever has betas
            self._cycled[number] = cycled
            settings = {key: value for key, value in group.items() if key not in SCHEDULED}
            if self._checked.get(number) != settings:
                check_edited(group, self.state, initial_state, self._checked.get(number))
                self._checked[number] = settings

    def _distribution(self) -> Distribution | None:
        """How the parameters lie across processes; None: all here. Frameworks may have sharded them in place."""
        params = [param for group in self.param_groups for param in group["params"]]
        known = [id(param) for param in params]
        if self._shared_as != known:
            self._shared_as, self._shared = known, None
            if any(map(is_dtensor, params)) or (params and self.process_group is not None):
                from rlspec.optim.engine.shared import Distribution

                self._shared = Distribution(self.param_groups, self.process_group)
        return self._shared

    def _update_all(self, flags: list[Flag]) -> None:
        first = 0
        for group in self.param_groups:
            size = len(group["params"])
            for entries in batches(group, first, flags[first : first + size], self.state, self.workspace_bytes):
                self._update(group, entries)
                entries.clear()  # its gradients may be copies, which the next batch should not meet in memory
            first += size

    def _alive(self, shared: Distribution | None) -> list[Flag]:
        """Of all parameters, group by group, whether they are updated in this step; alike on all processes."""
        params = [param for group in self.param_groups for param in group["params"]]
        gradients = {k: local(param.grad) for k, param in enumerate(params) if param.grad is not None and param.numel()}
        for position, gradient in gradients.items():
            if gradient.is_sparse:
                raise ConfigError(f"{self._label(position)[1]}: sparse gradients are not supported; use sparse=False")
        looks = Looks(self.check_finite, self.skip_zero_gradients, self._defers)
        found = looks.judge(len(params), gradients, shared, lambda: [self._label(k)[1] for k in range(len(params))])
        for position in sorted(found.bad):
            self._recorder.skip(*self._label(position))
        self._recorder.skip_later([self._label(position) for position in found.masked], found.finite)
        self._recorder.zero(found.zero)
        if found.zero is True:
            self._start_states()
        return found.flags

    def _start_states(self) -> None:
        """Of parameters with a gradient: torch.distributed.checkpoint takes a step of zeros for it before it loads."""
        for group in self.param_groups:
            for slot, param in enumerate(group["params"]):
                if param.grad is not None and param.numel() and not started(self.state[param]):
                    self.state[param].update(initial_state(param, group, slot))

    def _defers(self, param: Tensor) -> bool:
        """Whether asking for a value would make the host wait, and fused AdamW can be told on the device."""
        return param.device.type == "cuda"

    def _label(self, position: int) -> tuple[str, str]:
        """Role and name of a parameter, by its position among all of the optimizer."""
        for group in self.param_groups:
            if position < len(group["params"]):
                return group["role"], parameter_name(group, position)
            position -= len(group["params"])
        raise IndexError(position)

    def _update(self, group: Group, entries: list[Entry]) -> None:
        rule = get_rule(group["rule"])
        targets, lr = [entry.target for entry in entries], float(group["lr"])
        result = None if rule.kernel is not None else updates(group, rule, entries)
        cut = layout(group, rule) if rule.spectral else None
        with self._recorder.measure(group["role"], lr, targets, cut):
            if result is not None:
                apply_updates(group, rule, entries, result)
            elif rule.kernel is not None:
                run_kernel(group, rule.kernel, entries)
            if group["spectral_cap"] and rule.spectral:
                _cap(group, rule, targets)
        if result is not None and rule.spectral:
            self._recorder.blocks(group["role"], result.blocks, result.filtered, result.energy)
        else:
            kept = "momentum_buffer" if rule.kernel is None else rule.kernel.buffers[0]
            self._recorder.elementwise(group["role"], [entry.state.get(kept, entry.gradient) for entry in entries])
        copies = [entry for entry in entries if entry.target is not entry.param]
        if copies:
            torch._foreach_copy_([entry.param for entry in copies], [entry.target for entry in copies])

    def _report_half_pairs(self, group: Group) -> None:
        """Warn once where a LoRA factor stands still because its partner has no gradient."""
        params = group["params"]
        for position in range(0, len(params), 2):
            missing = [param.grad is None for param in params[position : position + 2]]
            if missing[0] != missing[1] and not self._warned_of_half:
                self._warned_of_half = True
                without = parameter_name(group, position + missing[1])
                warnings.warn(
                    f"{without} has no gradient, so that its partner is left unchanged too: rule {group['rule']} moves "
                    "both factors of a LoRA layer or none; train both, or give them rule adamw",
                    stacklevel=5,
                )

    def _report_unused(self) -> None:
        unused = self.without_updates()
        if unused and len(unused) == sum(len(group["params"]) for group in self.param_groups):
            warnings.warn(
                f"no parameter had a usable gradient in {REPORT_UNUSED_AFTER} steps, so that none has moved: if the "
                "model has gradients, its parameters are others than when this optimizer was built (fully_shard, a "
                "copy, adapters); build the optimizer after that",
                stacklevel=4,
            )
        elif unused:
            warnings.warn(
                f"{len(unused)} trainable parameters had no usable gradient in {REPORT_UNUSED_AFTER} steps "
                f"({', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}): they take no part in the loss; "
                "freeze them (requires_grad_(False)) or leave them be",
                stacklevel=4,
            )
        still = [] if self._watched else self.inactive_spectral_groups(REPORT_UNUSED_AFTER)
        if still and len(unused) < sum(len(group["params"]) for group in self.param_groups):
            warnings.warn(
                f"{', '.join(still)}: no direction of any update passed the filter in {REPORT_UNUSED_AFTER} steps, so "
                "that weight decay alone moves these matrices; promotion_steps='auto' lets the strongest pass",
                stacklevel=4,
            )


def _vectors_apart(group: Group, rule: str) -> list[Group]:
    """A group without a rule as up to two: what has a matrix under that rule, and its vectors under AdamW."""
    params = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    is_vector = [(each[1] if isinstance(each, tuple) else each).ndim < 2 for each in params]
    listed = {"params": params, **({"param_names": group["param_names"]} if "param_names" in group else {})}
    settings: tuple[Group, Group] = {"rule": rule, **group}, {"rule": "adamw", "weight_decay": 0.0, **group}
    return [
        {**chosen, **{key: [each for each, one in zip(whole, is_vector, strict=True) if one is wanted]
                      for key, whole in listed.items()}}
        for chosen, wanted in zip(settings, (False, True), strict=True)
        if wanted in is_vector
    ]  # fmt: skip


def _cap(group: Group, rule: Rule, targets: list[Tensor]) -> None:
    for target in targets:
        blocks = split_blocks(target, *layout(group, rule))
        capped = constrain(blocks, group["spectral_cap"], group["cap_method"])
        target.copy_(merge_blocks(capped, target.shape, *layout(group, rule)[1:]))


OF_A_GROUP = (
    "lr",
    "rule",
    "role",
    *LAYOUT_KEYS,
    "scaling",
    "maximize",
    *declared_defaults(OptimizerSettings),
)
"""Keys that every parameter group has."""
