"""The table of update rules: every optimizer is one composition of pure functions.

    update = scale . merge . stages (filter, variance, ...) . split . momentum (gradient)

A new rule is a new line in `RULES`, and perhaps one new stage. The split is the symmetry map's choice, and the
normaliser and the length of the step are settings of the parameter group, so that they combine with every rule.
"""

from __future__ import annotations

import sys

from rlspec.errors import ConfigError, nearest
from rlspec.optim.composition import Rule, ema, heavy_ball
from rlspec.optim.stages.adam_variants import ademamix, diffgrad, spectra_base
from rlspec.optim.stages.bases import aro, conda
from rlspec.optim.stages.clipping import soft_clip
from rlspec.optim.stages.dion import dion
from rlspec.optim.stages.elementwise import ADAMW, sgd
from rlspec.optim.stages.filters import high_pass, low_pass, low_rank, normalise, polar
from rlspec.optim.stages.lmo import row_ball, sign_ball, spectral_ball
from rlspec.optim.stages.lora import LORA_MUON, LORA_PION
from rlspec.optim.stages.lora_adaptive import ADAPRE_LORA, LORA_RITE
from rlspec.optim.stages.low_rank import dct_adamw, trion
from rlspec.optim.stages.one_sided import (
    centered_left_polar,
    centered_row_norm,
    column_norm,
    column_then_polar,
    left_polar,
    polar_then_row,
    right_polar,
    row_norm,
    row_then_polar,
)
from rlspec.optim.stages.outliers import clip_outliers, fitted_polar
from rlspec.optim.stages.second_moments import (
    accumulated_norm,
    column_ratios,
    cosh_brake,
    elementwise_variance,
    factored_variance,
    follow_ratio,
    norm_ratio,
    row_variance,
    signs,
)
from rlspec.optim.stages.shampoo import shampoo, soap
from rlspec.optim.stages.whitening import unwhiten, whiten

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("adamw", "arXiv 1711.05101, torch.optim.AdamW", length="own", kernel=ADAMW),
        Rule("sgd", "torch.optim.SGD", (sgd,), "O x O", length="gradient", elementwise=True),
        Rule("signum", "arXiv 1802.04434", (signs,), "S x S", ema, length="unit", elementwise=True),
        Rule("ademamix", "arXiv 2409.03137", (ademamix,), "S x S", length="own", elementwise=True),
        Rule("diffgrad", "arXiv 1909.11015", (diffgrad,), "S x S", length="own", elementwise=True),
        Rule("muon", "https://kellerjordan.github.io/posts/muon/", (normalise, polar), "O x O", ema),
        Rule("pion", "arXiv 2605.19282", (normalise, high_pass), "O x O", ema, length="measured", gates=True),
        Rule("low_pass_muon", "arXiv 2605.19282", (normalise, low_pass), "O x O", ema, length="measured", gates=True),
        Rule("low_rank_muon", "arXiv 2605.19282", (low_rank,), "O x O", ema, length="measured"),
        Rule("conda", "arXiv 2509.24218", (conda,), "O x S", length="own", sides="short x long"),
        Rule("aro", "arXiv 2602.09006", (aro,), "D x S", ema, length="measured", sides="short x long"),
        Rule("root", "arXiv 2511.20626", (clip_outliers, normalise, fitted_polar), "S x S", heavy_ball),
        Rule("row_norm", "arXiv 2605.18106", (row_norm,), "S x O", ema, length="measured"),
        Rule(
            "centered_row_norm",
            "arXiv 2605.18106",
            (centered_row_norm,),
            "P x O",
            ema,
            length="measured",
            centered=True,
        ),
        Rule("column_norm", "arXiv 2605.18106", (column_norm,), "O x S", ema, length="measured"),
        Rule("right_polar", "arXiv 2605.18106", (right_polar,), "O x O", ema),
        Rule("left_polar", "arXiv 2605.18106", (left_polar,), "O x O", ema),
        Rule("centered_left_polar", "arXiv 2605.18106", (centered_left_polar,), "P x O", ema, centered=True),
        Rule("row_then_polar", "arXiv 2605.18106", (row_then_polar,), "S x O", ema),
        Rule("column_then_polar", "arXiv 2605.18106", (column_then_polar,), "O x S", ema),
        Rule("polar_then_row", "arXiv 2605.18106", (polar_then_row,), "S x O", ema, length="measured"),
        Rule("namo", "arXiv 2602.17080", (norm_ratio, normalise, polar, follow_ratio), "O x O", ema),
        Rule("namo_d", "arXiv 2602.17080", (column_ratios, normalise, polar, follow_ratio), "O x S", ema),
        Rule("normuon", "arXiv 2510.05491", (normalise, polar, row_variance), "S x O", ema),
        Rule("adamuon", "arXiv 2507.11005", (signs, normalise, polar, elementwise_variance), "S x S", ema),
        Rule("adago", "arXiv 2509.02981", (normalise, polar, accumulated_norm), "O x O", ema),
        Rule("factored_muon", "arXiv 2510.25000", (normalise, polar, factored_variance), "S x S", ema),
        Rule(
            "factored_pion",
            "arXiv 2605.19282, 2510.25000",
            (normalise, high_pass, factored_variance),
            "S x S",
            ema,
            length="measured",
            gates=True,
        ),
        Rule("auon", "arXiv 2509.24320", (cosh_brake,), "S x S", ema, length="gradient"),
        Rule("hybrid_auon", "arXiv 2509.24320", (normalise, polar, cosh_brake), "S x S", ema),
        Rule("spectra", "arXiv 2603.14315", (spectra_base, soft_clip), "S x S", length="own"),
        Rule("lora_muon", "arXiv 2606.12921", symmetry="O x O", momentum=ema, pair=LORA_MUON),
        Rule("lora_pion", "arXiv 2605.19282, 2606.12921", symmetry="O x O", momentum=ema, pair=LORA_PION, gates=True),
        Rule("lora_rite", "arXiv 2410.20625", symmetry="O x O", length="own", pair=LORA_RITE),
        Rule("adapre_lora", "arXiv 2605.08734", momentum=ema, length="own", pair=ADAPRE_LORA),
        Rule("fismo", "arXiv 2601.21750", (normalise, polar, unwhiten), "O x O", ema, before=(whiten,)),
        Rule("trion", "arXiv 2505.17967", (trion,), "- x S", length="measured", sides="short x long"),
        Rule("dion", "arXiv 2504.05295", (dion,), "O x -", length="measured"),
        Rule("scion", "arXiv 2502.07529", (normalise, polar, spectral_ball), "O x O", ema, length="own"),
        Rule("scion_sign", "arXiv 2502.07529", (sign_ball,), "S x S", ema, length="own"),
        Rule("scion_row", "arXiv 2502.07529", (row_ball,), "S x O", ema, length="own"),
        Rule("shampoo", "arXiv 1802.09568, 2309.06497", (shampoo,), "S x S", length="own"),
        Rule("soap", "arXiv 2409.11321", (soap,), "O x D", length="own", sides="short x long"),
        Rule("dct_adamw", "arXiv 2505.17967", (dct_adamw,), "- x S", length="own", sides="short x long"),
    )
}
"""Name -> composition."""

REGISTERED: dict[str, str] = {}
"""Name of a rule that `register` added -> the module that called it."""


def get_rule(name: str) -> Rule:
    """Look a rule up.

    Raises:
        ConfigError: naming the nearest rules.
    """
    if name in RULES:
        return RULES[name]
    raise ConfigError(f"unknown optimizer rule {name!r}; {nearest(str(name), RULES)}")


def register(rule: Rule) -> Rule:
    """Add a rule of your own to the table, so that every name of a rule may be its.

    Raises:
        ConfigError: if the name is taken.
    """
    if rule.name in RULES:
        raise ConfigError(f"there is a rule {rule.name!r} already; give yours another name")
    RULES[rule.name] = rule
    REGISTERED[rule.name] = sys._getframe(1).f_globals.get("__name__", "")
    return rule
