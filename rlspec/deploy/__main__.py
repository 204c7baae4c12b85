"""Run a policy on a robot, safely: `python -m rlspec.deploy robot=NAME (server=URL | checkpoint=DIR)`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rlspec.deploy.calibration.camera import CalibrateCameraCommand, calibrate_camera
from rlspec.deploy.calibration.workspace import CalibrateCommand, calibrate
from rlspec.deploy.log.review import ReviewCommand, review
from rlspec.deploy.settings import Settings
from rlspec.display import Display
from rlspec.entry import command


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 stopped by a fault, 2 for a mistake, 130 stopped by the user."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if ReviewCommand.is_meant(arguments):
        return command(ReviewCommand, lambda line: review(line, Display()), arguments)
    if any(argument.startswith("calibrate=") for argument in arguments):
        given = [argument.removeprefix("robot=") for argument in arguments if argument.startswith("robot=")]
        file = Path(given[-1]) if given and given[-1].endswith((".yaml", ".yml")) else None
        if "calibrate=camera" in arguments:
            return command(CalibrateCameraCommand, lambda line: calibrate_camera(line, Display(), file=file), arguments)
        return command(CalibrateCommand, lambda line: calibrate(line, Display(), file=file), arguments)
    return command(Settings, _deploy, arguments)


def _deploy(settings: Settings) -> int:
    if settings.print:
        from rlspec.config.annotated import annotated

        sys.stdout.write(annotated(settings, without=("print", "token")))
        return 0
    from rlspec.deploy.run import deploy

    return deploy(settings, Display()).exit_code


if __name__ == "__main__":
    sys.exit(main())
