"""Every rule on the device against the CPU in float32: relative error of what one and three steps changed."""

from __future__ import annotations

import math
from typing import Any

import torch
from gpu_sections.inputs import give_gradients, optimizer_of, parameters
from gpu_sections.part import Part, Setup, one_line
from torch import Tensor, nn

from rlspec.optim import RULES, SpectralOptimizer

STEPS = 3
TOLERANCE = 1e-3
"""Relative error in float32 above which a device is said to differ."""


def run(part: Part, setup: Setup) -> None:
    _exact(part, setup)
    _masking(part, setup)
    differing = []
    for rule in RULES:
        row = _one_rule(rule, setup)
        part.add("rules", row)
        if not row.get("agrees"):
            differing.append(rule)
        errors = " ".join(f"{name} {row[name][0]:.1e}/{row[name][-1]:.1e}" for name in VARIANTS if name in row)
        part.say(f"  {rule:20} {errors or row['error']}")
    agree = f"{len(RULES) - len(differing)} of {len(RULES)} rules agree with the CPU in float32 to {TOLERANCE:g}"
    part.say(agree + (f"; not: {', '.join(differing)}" if differing else ""))


VARIANTS = {
    "float32": ("device", {"compute_dtype": "float32"}),
    "bfloat16": ("device", {"compute_dtype": "bfloat16"}),
    "cpu_bfloat16": ("cpu", {"compute_dtype": "bfloat16"}),
}
"""Name in the table -> where, and the settings; the reference is the CPU in float32."""


def _changes(rule: str, device: str, **settings: Any) -> list[list[Tensor]]:
    """After one and after all steps, what they have changed."""
    params = parameters(rule, device)
    start = [param.detach().cpu().double() for param in params]
    optimizer, found = optimizer_of(rule, params, **settings), []
    for step in range(STEPS):
        give_gradients(params, seed=step + 1)
        optimizer.step()
        if step in (0, STEPS - 1):
            found.append([param.detach().cpu().double() - old for param, old in zip(params, start, strict=True)])
    return found


def _error(ours: list[Tensor], reference: list[Tensor]) -> float:
    """Largest relative error of a parameter's change."""
    errors = [((a - b).norm() / b.norm()).item() for a, b in zip(ours, reference, strict=True)]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _one_rule(rule: str, setup: Setup) -> dict[str, Any]:
    row: dict[str, Any] = {"rule": rule}
    try:
        reference = _changes(rule, "cpu", compute_dtype="float32")
        for name, (where, settings) in VARIANTS.items():
            changes = _changes(rule, setup.device if where == "device" else "cpu", **settings)
            row[name] = [_error(ours, wanted) for ours, wanted in zip(changes, reference, strict=True)]
        row["agrees"] = max(row["float32"]) < TOLERANCE
    except Exception as error:
        row["error"] = one_line(error)
    return row


def _exact(part: Part, setup: Setup) -> None:
    """The two claims of equality with torch, bit for bit."""
    torch_like = {"normalise": "torch", "compute_dtype": "bfloat16", "adjust_lr": "match_rms_adamw"}
    pairs = {
        "muon": (
            torch.optim.Muon,
            {"adjust_lr_fn": "match_rms_adamw", "nesterov": True},
            torch_like | {"nesterov": True},
        ),
        "adamw": (torch.optim.AdamW, {"fused": True}, {}),
    }
    for rule, (theirs, settings, ours) in pairs.items():
        both = [parameters(rule, setup.device) for _ in range(2)]
        common = {"lr": 1e-3, "weight_decay": 0.1}
        optimizers = [theirs(both[0], **common, **settings), SpectralOptimizer(both[1], rule=rule, **common, **ours)]
        for step in range(STEPS):
            for params, optimizer in zip(both, optimizers, strict=True):
                give_gradients(params, seed=step + 1)
                optimizer.step()
        equal = all(torch.equal(a, b) for a, b in zip(*both, strict=True))
        largest = max((a - b).abs().max().item() for a, b in zip(*both, strict=True))
        part.add("equal_to_torch", {"rule": rule, "equal": equal, "largest_difference": largest})
        part.say(f"{rule} equals torch's bit for bit: {equal} (largest difference {largest:.1e})")


def _masking(part: Part, setup: Setup) -> None:
    """A gradient with NaN leaves its own matrix alone; the others move as they would."""
    failing = []
    for rule in RULES:
        try:
            if not _masks(rule, setup.device):
                failing.append(rule)
        except Exception as error:
            failing.append(f"{rule} ({one_line(error, 100)})")
    part.put("masking_fails", failing)
    part.say(f"NaN masked by all rules but: {', '.join(failing) or 'none'}")


def _masks(rule: str, device: str) -> bool:
    params = parameters(rule, device)
    optimizer = optimizer_of(rule, params)
    for step in range(2):
        give_gradients(params, seed=step + 1)
        gradient = params[0].grad
        assert gradient is not None
        if step == 1:
            gradient[3, 5] = math.nan
        before = [nn.Parameter(param.detach().clone()) for param in params]
        optimizer.step()
    still = torch.equal(params[0], before[0]) and all(param.isfinite().all() for param in params)
    batch_is_skipped = rule == "adamw" and device == "cuda"
    return still and (batch_is_skipped or not torch.equal(params[-1], before[-1]))
