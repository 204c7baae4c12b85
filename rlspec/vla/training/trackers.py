"""The numbers of metrics.jsonl as events of TensorBoard and Weights & Biases."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from rlspec.config.schema import Report
from rlspec.config.vla_schema import VlaRecipe
from rlspec.errors import ConfigError
from rlspec.run_directory import RunDirectory


def check_report(report: Report) -> None:
    """Refuse what cannot be reported to.

    Raises:
        ConfigError: wandb is wanted and not installed.
    """
    if report.wandb and importlib.util.find_spec("wandb") is None:
        raise ConfigError("report.wandb=true: wandb is not installed; install it, or leave report.wandb=false")


class Trackers:
    """Sends rows where the recipe's section `report` says.

    Args:
        recipe: of the run.
        run: its directory.
        step: after which the run goes on.
    """

    def __init__(self, recipe: VlaRecipe, run: RunDirectory, *, step: int = 0) -> None:
        self._events: Any = None
        self._wandb: Any = None
        if recipe.report.wandb:
            import wandb

            self._wandb = wandb.init(
                name=run.path.name, id=run.path.name, resume="allow", dir=str(run.path), config=recipe.model_dump()
            )
        if recipe.report.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Later events of an earlier session are hidden: their steps are taken again.
            self._events = SummaryWriter(str(run.path / "tensorboard"), purge_step=step + 1 if step else None)

    def log(self, row: Mapping[str, Any]) -> None:
        """Send the numbers of a row."""
        numbers = {key: value for key, value in row.items() if key != "step" and isinstance(value, int | float)}
        if self._events is not None:
            for key, value in numbers.items():
                self._events.add_scalar(key, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(numbers, step=row["step"])

    def close(self) -> None:
        """Write what is not yet written."""
        if self._events is not None:
            self._events.close()
        if self._wandb is not None:
            self._wandb.finish()
