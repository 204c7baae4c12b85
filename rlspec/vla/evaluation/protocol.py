"""From a recipe's sections `env` and `evaluation` to what is run."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlspec.checkpoint import MANIFEST, read_manifest
from rlspec.config.vla_schema import Env, SimEvaluation
from rlspec.errors import CheckpointError, ConfigError
from rlspec.vla.evaluation.checks import TrainingConditions
from rlspec.vla.evaluation.jobs import ActorSpec
from rlspec.vla.evaluation.simulator import Simulator

Actor = Path | str  # "expert", "replay", a folder, or a hub id
EXPERT: Literal["expert"] = "expert"
REPLAY: Literal["replay"] = "replay"


@dataclass(frozen=True)
class Protocol:
    """What is measured in and how.

    Attributes:
        simulator: With the options that follow from the settings.
        tasks: Names.
        settings: The recipe's section.
        replan_steps: The profile's, where `n_action_steps` is null.
    """

    simulator: Simulator
    tasks: tuple[str, ...]
    settings: SimEvaluation
    replan_steps: int | None = None

    @property
    def stored_states(self) -> bool:
        """Whether episode i starts from stored initial state i."""
        return self.simulator.suite.startswith("libero")

    @property
    def perturbations(self) -> tuple[str, ...]:
        """What is changed of the scenes, one thing at a time, in further episodes."""
        from rlspec_envs.perturbation import expand

        return tuple(expand(self.settings.perturb, self.settings.strength))

    def identity(self, spec: ActorSpec) -> dict[str, Any]:
        """All that decides what an episode comes to."""
        return {
            "suite": self.simulator.suite,
            "options": self.simulator.options,
            "seed": self.settings.seed,
            "profile": self.settings.profile,
            "max_steps": self.settings.max_steps,
            "policy": spec.token,
            "n_action_steps": spec.n_action_steps,
            "replan_steps": spec.replan_steps,
        }

    def actor(
        self, what: Actor, *, device: str, training: TrainingConditions, dataset: Path | None = None
    ) -> ActorSpec:
        """Who acts.

        Raises:
            CheckpointError: There is no policy in that folder.
        """
        if what == EXPERT:
            return ActorSpec("expert", token=EXPERT)
        if what == REPLAY:
            assert dataset is not None, "the caller has one"
            return ActorSpec("replay", str(dataset), token=f"replay of {dataset}")
        path = find_policy(what)
        steps = self.settings.n_action_steps
        replan = self.replan_steps if steps is None else None
        return ActorSpec("policy", path, fingerprint(path), steps, replan, device, training)


def build_protocol(env: Env, settings: SimEvaluation, module: str = "rlspec_envs") -> Protocol:
    """Resolve profile, limit and tasks.

    Raises:
        ConfigError: Settings contradict each other.
    """
    options = dict(env.options)
    replan_steps = None
    if settings.profile is not None:
        if options.setdefault("profile", settings.profile) != settings.profile:
            raise ConfigError(
                f"evaluation.profile={settings.profile}: env.options.profile is {options['profile']}; set one of them"
            )
        from rlspec_envs.libero.profiles import get_profile

        replan_steps = get_profile(settings.profile).replan_steps
    simulator = Simulator(env.suite, options, module)
    return Protocol(simulator, tuple(env.tasks) or tuple(simulator.tasks()), settings, replan_steps)


def find_policy(what: Actor) -> str:
    """The folder with a policy's config.json: the one named, or `pretrained_model` in it; a hub id as it is.

    Raises:
        CheckpointError: A folder without a policy.
    """
    path = Path(what).expanduser()
    if not path.is_dir():
        if isinstance(what, Path) or what.count("/") != 1 or what.startswith((".", "/", "~")):
            raise CheckpointError(f"policy={what}: no such folder")
        return what
    for folder in (path, path / "pretrained_model"):  # LeRobot's checkpoints have the latter
        if (folder / "config.json").is_file():
            return str(folder)
    raise CheckpointError(f"policy={what}: no policy there (it has no config.json)")


def fingerprint(path: str) -> str:
    """Tells the weights of one policy from another's; a hub id stands for itself."""
    folder = Path(path)
    if not folder.is_dir():
        return path
    digest = hashlib.sha256()
    known = read_manifest(folder)["files"] if (folder / MANIFEST).is_file() else {}
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
        if file.name == MANIFEST:
            continue
        digest.update(file.name.encode())
        digest.update((known[file.name]["sha256"] if file.name in known else _sha256(file)).encode())
    return digest.hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
