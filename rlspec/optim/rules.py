"""The table of update rules: every optimizer is one composition of pure functions.

    update = scale . merge . stages (filter, variance, ...) . split . momentum (gradient)

A new rule is a new line in `RULES`, and perhaps one new stage. The split is the symmetry map's choice, and the
normaliser and the length of the step are settings of the parameter group, so that they combine with every rule.
"""

from __future__ import annotations

from rlspec.errors import ConfigError
from rlspec.optim.bases import aro, conda
from rlspec.optim.composition import Rule, ema, heavy_ball
from rlspec.optim.filters import high_pass, normalise, polar
from rlspec.optim.lora import LORA_MUON, LORA_PION, LORA_RITE
from rlspec.optim.outliers import clip_outliers, fitted_polar
from rlspec.optim.scale import nearest

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("adamw", "arXiv 1711.05101, torch.optim.AdamW"),
        Rule("muon", "https://kellerjordan.github.io/posts/muon/", (normalise, polar), "O x O", ema),
        Rule("pion", "arXiv 2605.19282", (normalise, high_pass), "O x O", ema, length="measured", gates=True),
        Rule("conda", "arXiv 2509.24218", (conda,), "S x O", length="own"),
        Rule("aro", "arXiv 2602.09006", (aro,), "S x S", ema, length="measured"),
        Rule("root", "arXiv 2511.20626", (clip_outliers, normalise, fitted_polar), "S x S", heavy_ball),
        Rule("lora_muon", "arXiv 2606.12921", symmetry="O x O", momentum=ema, pair=LORA_MUON),
        Rule("lora_pion", "arXiv 2605.19282, 2606.12921", symmetry="O x O", momentum=ema, pair=LORA_PION, gates=True),
        Rule("lora_rite", "arXiv 2410.20625", symmetry="O x O", length="own", pair=LORA_RITE),
    )
}
"""Name -> composition."""


def get_rule(name: str) -> Rule:
    """Look a rule up.

    Raises:
        ConfigError: naming the nearest rules.
    """
    if name in RULES:
        return RULES[name]
    raise ConfigError(f"unknown optimizer rule {name!r}; {nearest(name, RULES)}")


def register(rule: Rule) -> Rule:
    """Add a rule of your own to the table, so that every name of a rule may be its.

    Raises:
        ConfigError: if the name is taken.
    """
    if rule.name in RULES:
        raise ConfigError(f"there is a rule {rule.name!r} already; give yours another name")
    RULES[rule.name] = rule
    return rule
