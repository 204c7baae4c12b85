"""A robot of one's own: `robot.driver=module:Class`, with its options checked like those of ours."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from rlspec.deploy.__main__ import main
from rlspec.deploy.arm.interfaces import Robot
from rlspec.deploy.robots.drivers import DRIVERS, load
from rlspec.deploy.settings import Settings

TOY = '''
from rlspec.deploy.arm.robot_limits import LIMITS
from rlspec.deploy.robots.dry_run import DryRunRobot


class Toy(DryRunRobot):
    """Done after some looks at its state."""

    def __init__(self, *, looks: int = 8, colour: str = "red") -> None:
        super().__init__(LIMITS["fr3"], {}, name="toy")
        self.left, self.colour = looks, colour

    def read(self):
        self.left -= 1
        return super().read()

    @property
    def instruction(self) -> str:
        return f"wave at the {self.colour} cube"

    @property
    def success(self) -> bool:
        return self.left <= 0


class Real(Toy):
    simulated = False


class NoRobot:
    pass
'''
BASE = ["robot=mujoco", "policy=hold"]


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_robots.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)


def own(name: str, *arguments: str) -> list[str]:
    """A command line for one of the toys; the recipe's options are not theirs."""
    return ["robot=dry_run", "policy=hold", f"robot.driver=toy_robots:{name}", *arguments]


def test_it_runs_until_it_says_that_the_task_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(own("Toy", "robot.colour=blue", "seconds=30", f"out={tmp_path / 'run'}")) == 0
    assert "success: the task is done" in capsys.readouterr().out
    assert '"prompt": "wave at the blue cube"' in (tmp_path / "run" / "ticks.jsonl").read_text().replace('":"', '": "')


def test_what_moves_steel_is_real() -> None:
    assert Settings.read(own("Toy")).effective_mode == "sim"
    box = ["safety.workspace_low=[0.2,-0.4,0.0]", "safety.workspace_high=[0.8,0.4,0.8]"]
    assert Settings.read(own("Real", *box)).effective_mode == "real"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (own("Toy", "robot.color=red"), "robot.color=red: robot=dry_run has no such option; did you mean colour?"),
        (own("Toy", "robot.looks=many"), "robot.looks=many: must be a whole number"),
        (own("Tay"), "robot.driver=toy_robots:Tay: module 'toy_robots' has no attribute 'Tay'; give an importable"),
        (
            own("NoRobot"),
            "robot.driver=toy_robots:NoRobot: no robot; derive it from rlspec.deploy.arm.interfaces.Robot",
        ),
        ([*BASE, "robot.driver=mujocco"], "robot.driver=mujocco: unknown; did you mean mujoco?"),
        ([*BASE, "robot.driver=no.such:Robot"], "robot.driver=no.such:Robot: No module named 'no'; give an importable"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(line) and error.count("\n") == 1


@pytest.mark.parametrize("name", DRIVERS)
def test_the_options_of_the_table_are_keywords_of_the_driver(name: str) -> None:
    """Every option of a schema reaches the driver, with the default that the driver itself has."""
    driver = DRIVERS[name]
    classes = {"franky": "FrankySettings", "franky_sim": "FrankySimRobot", "mujoco": "MujocoRobot", "dry_run": "make"}
    taken = inspect.signature(load(f"{driver.target.partition(':')[0]}:{classes[name]}")).parameters
    passed_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    for option, field in driver.options.model_fields.items():
        assert option in taken or passed_on, option
        if option in taken:
            ours, theirs = field.default, taken[option].default
            assert (tuple(ours) if isinstance(ours, list) else ours) == theirs, option


@pytest.mark.parametrize("name", DRIVERS)
def test_our_drivers_derive_from_the_protocol(name: str) -> None:
    module = load(DRIVERS[name].target).__module__
    robots = [
        each for each in vars(__import__(module, fromlist=["*"])).values() if Robot in getattr(each, "__mro__", ())
    ]
    assert any(each is not Robot and not each.__abstractmethods__ for each in robots)


def test_the_simulated_robot_takes_every_option_of_every_task() -> None:
    from rlspec_envs.franka.tasks import TASKS

    asked = {name for task in TASKS.values() for name in inspect.signature(task.__init__).parameters} - {"self"}
    assert "goal" in asked
    assert asked <= DRIVERS["mujoco"].options.model_fields.keys()
    parsed = DRIVERS["mujoco"].check({"colours": ["red"], "workspace": [0.4, 0.6, -0.2, 0.2]}, "mujoco")
    assert parsed.model_dump(exclude_unset=True) == {"colours": ["red"], "workspace": [0.4, 0.6, -0.2, 0.2]}
