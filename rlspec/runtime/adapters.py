"""From a recipe's adapters to peft's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peft import PeftConfig


def adapter_config(
    *,
    method: str = "lora",
    r: int = 16,
    alpha: float = 32.0,
    dropout: float = 0.0,
    target_modules: Sequence[str],
    use_rslora: bool = False,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> PeftConfig:
    """What peft is told; `options` are knobs of its own, checked by `rlspec.config.adapters`, and `more` ours."""
    from peft import FourierFTConfig, LoraConfig

    given = {**(options or {}), **more, "target_modules": list(target_modules)}
    if method == "fourierft":
        return FourierFTConfig(**given)
    return LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft scales by alpha / r and takes any number
        lora_dropout=dropout,
        use_rslora=use_rslora,
        bias="none",
        **given,
    )
