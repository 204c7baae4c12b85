"""The settings that each rule has in its paper or its authors' code, where ours are others: `settings="paper"`.

Ours make rules comparable: one length of step, no decay, heads split. A paper's reproduce it. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Paper:
    """What a rule has in its paper.

    Attributes:
        settings: over ours: fields of `rlspec.optim.settings`, options of the rule, and `split`.
        remains: what differs even so, or is not stated.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    remains: str = ""


_WHOLE = {"split": "whole"}
_UNMATCHED = {"adjust_lr": "none"}
_ROWS = _UNMATCHED | {"stale_eps": 1e-8, "eps_mode": "absolute"}
_POLAR = _UNMATCHED | {"polar_eps": 1e-8, "eps_mode": "absolute"}
_NAMO = _WHOLE | {"nesterov": True, "weight_decay": 0.1, "variance_eps": 1e-8}
_PRETRAINING = "rates are for pretraining; nothing is said of fine-tuning"
_NO_CONSTANTS = "no constants are stated and no code is known; ours are in the docstring"
_AUX = "the AdamW beside it has betas 0.9, 0.95: `optim.betas`"

PAPERS: dict[str, Paper] = {
    "signum": Paper(_UNMATCHED | {"momentum": 0.9}),
    "ademamix": Paper(remains="`slow_warmup` is the number of steps of the run"),
    "muon": Paper(_WHOLE | {"nesterov": True, "adjust_lr": "original"}, "of torch.optim.Muon: decay 0.1"),
    "pion": Paper(
        {"promotion_steps": 0.0, "adjust_lr": "paper", "paper_scale": 5.0, "weight_decay": 0.01},
        "of the runs for RLVR; those of robots: `optim=vla_pion_paper`, `vla_pion_openpi`; k_p per task is not stated",
    ),
    "low_pass_muon": Paper(remains="a control of Pion's paper, whose length is not stated"),
    "low_rank_muon": Paper(remains="likewise; `rank` 128 in actions, 256 in language, 512 in vision"),
    "conda": Paper(_WHOLE | {"betas": (0.9, 0.99)}, "its eps is absolute, ours relative; it decays after the update"),
    "aro": Paper(_WHOLE, "no official code; also of embeddings, which takes `optim.roles`"),
    "root": Paper(
        _WHOLE | {"nesterov": True, "weight_decay": 0.1},
        "coefficients are published for four shapes; others take Muon's, with a warning",
    ),
    "row_norm": Paper(_ROWS, _PRETRAINING),
    "centered_row_norm": Paper(_ROWS, _PRETRAINING),
    "column_norm": Paper(_ROWS, _PRETRAINING),
    "right_polar": Paper(_POLAR, _PRETRAINING),
    "left_polar": Paper(_POLAR, _PRETRAINING),
    "centered_left_polar": Paper(_POLAR, _PRETRAINING),
    "row_then_polar": Paper(_ROWS | _POLAR, _PRETRAINING),
    "column_then_polar": Paper(_ROWS | _POLAR, _PRETRAINING),
    "polar_then_row": Paper(_ROWS | _POLAR, _PRETRAINING),
    "namo": Paper(_NAMO, _AUX),
    "namo_d": Paper(_NAMO, _AUX),
    "normuon": Paper(_WHOLE | {"nesterov": True, "adjust_lr": "original"}),
    "adamuon": Paper(_WHOLE | {"nesterov": True, "weight_decay": 0.01}),
    "adago": Paper(_WHOLE | _UNMATCHED, "no official code; gamma, v_0 and the floor are a community's"),
    "factored_muon": Paper(remains="ours: the paper compares such variances and names no optimizer of this form"),
    "factored_pion": Paper(remains="ours, likewise"),
    "auon": Paper(_WHOLE | _UNMATCHED | {"nesterov": True}, "inert brake: Nesterov's SGD at a rate of 0.24 or 0.08"),
    "hybrid_auon": Paper(_WHOLE | _UNMATCHED | {"nesterov": True}, "`ns_steps` is 1 in the abstract and 5 in the code"),
    "spectra": Paper(
        _WHOLE | {"adjust_lr": "original"},
        "`spectral_clip` is 10, and 5 at 160M; `clip_warmup` is the schedule's warm-up; the bound's decay is left out",
    ),
    "lora_muon": Paper(_UNMATCHED | {"momentum": 0.9, "weight_decay": 0.01}, "B = 0 at the start is damped"),
    "lora_pion": Paper(remains="ours: Pion's filter in LoRA-Muon's coordinates"),
    "adapre_lora": Paper(remains=f"{_NO_CONSTANTS}; it has the whole gradient's moments, which ours estimates"),
    "fismo": Paper(_WHOLE | _UNMATCHED, _NO_CONSTANTS),
    "trion": Paper(
        _WHOLE | {"adjust_lr": "original"},
        "its lengths: `adjust_lr` original, spectral, and 0.2 sqrt(max), of which match_rms_adamw "
        "is some sqrt(1 / `dct_rank`) times",
    ),
    "dion": Paper(_WHOLE | {"adjust_lr": "spectral"}),
    "scion": Paper(_WHOLE | {"momentum": 0.9}, "constrained: `optim.weight_decay=1`"),
    "scion_sign": Paper({"momentum": 0.9}),
    "scion_row": Paper({"momentum": 0.9}),
    "soap": Paper(
        _WHOLE | {"betas": (0.95, 0.95), "weight_decay": 0.01, "soap_skip_first": True},
        "its eps is absolute, ours relative",
    ),
    "dct_adamw": Paper(_WHOLE, "ours corrects bias by the age of each column, and its eps is relative"),
    "shampoo": Paper(
        remains="epsilons are absolute there, ours relative; the code cuts sides at 1024, ours stay whole"
    ),
}
"""Rule -> its paper's settings; what is not here differs in nothing that we know of."""


def paper_settings(rule: str) -> dict[str, Any]:
    """Of a rule's parameter groups, over ours; without the split, which is the symmetry map's."""
    return {name: value for name, value in _settings(rule).items() if name != "split"}


def paper_split(rule: str, split: str) -> str:
    """The split of a rule in its paper, `split` where that says nothing."""
    return str(_settings(rule).get("split", split))


def _settings(rule: str) -> Mapping[str, Any]:
    return PAPERS[rule].settings if rule in PAPERS else {}
