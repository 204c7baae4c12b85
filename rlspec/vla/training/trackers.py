"""The numbers of metrics.jsonl as events of TensorBoard and Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlspec.config.schema import Report
from rlspec.runtime.starting import Run


class Trackers:
    """Sends rows where the recipe's section `report` says.

    Args:
        report: the recipe's section.
        run: that is tracked.
    """

    def __init__(self, report: Report, run: Run) -> None:
        self._events: Any = None
        self._wandb: Any = None
        path = run.directory.path
        if report.wandb:
            import wandb

            self._wandb = wandb.init(
                name=path.name,
                id=run.directory.tracker_id,
                resume="allow",
                dir=str(path),
                config=run.recipe.model_dump(),
            )
        if report.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            # Later events of an earlier session are hidden: their steps are taken again.
            purge = run.start + 1 if run.start else None
            self._events = SummaryWriter(str(path / "tensorboard"), purge_step=purge)

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
