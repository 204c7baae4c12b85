"""The schema of a recipe that fine-tunes a vision-language-action policy.

`algorithm: bc` is behaviour cloning, `grpo` reinforcement learning on the simulator's success.

Fields of the configs of LeRobot (policy, scheduler, image transforms) live in free mappings under its own names,
checked against its dataclasses and never declared again here.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from rlspec.config.schema import SEEDS, AnyRecipe, Lora, Place, Section
from rlspec.contract.policies import REGRESSION


class Env(Section):
    """The simulator: what a policy is measured in, and what demonstrations are generated in."""

    name: str
    suite: str  # one of rlspec_envs.SUITES
    tasks: list[str] = []  # empty: all of the suite
    options: dict[str, Any] = {}  # keyword arguments of the environment


class Demonstrations(Section):
    """Demonstrations by the scripted expert, generated once and kept."""

    episodes: int = Field(200, ge=1)  # successful ones, per task
    noise: float = Field(0.0, ge=0)  # standard deviation of the disturbance of executed actions; labels stay clean
    noise_share: float = Field(0.3, ge=0, le=1)  # share of steps that are disturbed
    seed: int = Field(0, ge=0, lt=SEEDS)  # of the first episode
    workers: int = Field(2, ge=1)
    video: bool = False  # MP4 instead of images


class Recordings(Section):
    """Raw DROID recordings of the scripted expert, generated once, converted and kept."""

    episodes: int = Field(200, ge=1)  # successful ones, per task
    failures: float = Field(0.0, ge=0, le=10)  # failed ones besides, as a share of those
    noise: float = Field(0.0, ge=0)  # as in Demonstrations: the recorded action is the expert's
    noise_share: float = Field(0.3, ge=0, le=1)
    idle_steps: tuple[int, int] = (4, 12)  # fewest and most before the operator moves the robot
    seed: int = Field(0, ge=0, lt=SEEDS)  # of the first episode
    workers: int = Field(2, ge=1)
    lab: str = Field("SIM", pattern=r"^[A-Za-z0-9_-]+$")  # the laboratory's name in folders and ids


class Dataset(Section):
    """A LeRobotDataset v3: from the hub, from a folder, demonstrations, or converted recordings."""

    name: str
    repo_id: str | None = None
    root: Place = None  # local folder; demonstrations: where they are kept (default: checkpoints/data/...)
    revision: str | None = None
    episodes: list[int] | None = None  # train on these alone
    tasks: list[str] = []  # train on these alone: a LIBERO suite, SUITE/NUMBER, a task, its words; "env": as measured
    demonstrations: Demonstrations | None = None
    recordings: Recordings | None = None
    cameras: list[str] | None = None  # of recordings, those that are converted; null: all three
    rename: dict[str, str] = {}  # feature of the data set -> feature of the policy and the environment
    in_memory: bool = False  # decode every frame once
    video_backend: str = "pyav"

    @model_validator(mode="after")
    def _a_folder_needs_no_id(self) -> Dataset:
        if self.root is not None and self.repo_id == "???":
            self.repo_id = None
        return self


Part = Literal["vision", "connector", "language", "action"]  # of a policy


class Freeze(Section):
    """Parameters that are not trained, or only after a while."""

    part: Part | None = None  # by part of the model,
    pattern: str | None = None  # or by name: a regular expression
    until: int | None = Field(None, ge=1)  # optimizer step from which on they are trained; None: never


class PolicyLora(Lora):
    """Adapters on a policy, beside parts that are trained whole."""

    full_training: list[Part] = []  # parts of which all weights are trained and saved, such as a new head


class Policy(Section):
    """A LeRobot policy."""

    name: str
    type: str  # LeRobot's name of the policy
    path: Place = None  # hub id or local folder; None: built from its config
    norm_stats: Place = None  # null: of the data; "checkpoint": of `path`; or openpi's norm_stats.json
    options: dict[str, Any] = {}  # fields of the policy's config by LeRobot's names
    fresh: list[Part] = []  # parts that begin anew, whatever `path` has there
    lora: PolicyLora | None = None
    freeze: list[Freeze] = []


class Training(Section):
    """The training loop; one step is one update of the optimizer."""

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(64, ge=1)  # samples per process in one forward pass
    gradient_accumulation: int = Field(1, ge=1)  # forward passes per step
    bf16: bool = False  # autocast over float32 weights
    gradient_checkpointing: bool = False  # layers are computed again in the backward pass: less memory, a third slower
    grad_clip_norm: float = Field(10.0, ge=0)  # 0: none
    ema_decay: float = Field(0.0, ge=0, lt=1)  # of the averaged weights that are evaluated and kept; 0: none
    scheduler: dict[str, Any] = {"type": "constant_with_warmup", "num_warmup_steps": 0}  # LeRobot's, by its names
    augmentation: dict[str, Any] = {}  # fields of LeRobot's ImageTransformsConfig; empty: none
    random_shift: int = Field(0, ge=0)  # largest shift of images in pixels, edges repeated
    num_workers: int = Field(0, ge=0)  # of the data loader
    held_out: float = Field(0.0, ge=0, le=0.5)  # share of recordings that are not trained on, but whose loss is logged
    held_out_every: int = Field(100, ge=1)  # steps between two such losses
    log_every: int = Field(10, ge=1)


class Start(Section):
    """The run of imitation that makes a policy to begin with, with `env`, `dataset` and `policy` of this recipe."""

    recipe: str = "vla_franka"
    overrides: list[str] = []  # of it, for example training.steps=800


class Grpo(Section):
    """GRPO on success in the simulator. One step: groups of episodes, then updates on all their chunks."""

    start: Start | None = None  # where policy.path is null
    group_size: int = Field(8, ge=2)  # episodes from one initial state
    groups_per_step: int = Field(8, ge=1)
    success: tuple[float, float] = (0.1, 0.9)  # groups outside are dropped
    refills: int = Field(3, ge=0)  # how often dropped groups are replaced by others
    noise_level: float | None = Field(None, gt=0, le=1.41)  # of flow policies: sigma_t = noise_level sqrt(t / (1 - t)),
    # None: 0.5; of a regression head: its Gaussian's first standard deviation, in normalised units, None: 0.1
    clip_low: float = Field(0.2, gt=0, lt=1)
    clip_high: float = Field(0.28, gt=0)
    update_epochs: int = Field(1, ge=1)  # passes over a step's chunks
    mini_batches: int = Field(1, ge=1)  # updates in one pass, each on whole groups
    max_episode_steps: int | None = Field(None, ge=1)  # None: the environment's
    train: list[Part] = ["action"]  # parts of the policy that are trained; empty: all
    seed: int = Field(1_000_000, ge=0, lt=SEEDS)  # of the first scene; evaluations and demonstrations have others
    workers: int = Field(2, ge=1)  # processes that run episodes
    films: int = Field(2, ge=0)  # episodes that are filmed in the first and in the last step


class SimEvaluation(Section):
    """How a policy is measured in the simulator."""

    episodes: int = Field(50, ge=1)  # per task
    seed: int = Field(100_000, ge=0, lt=SEEDS)  # of the first episode; demonstrations have other ones
    workers: int = Field(2, ge=1)
    profile: Literal["openpi", "lerobot"] | None = None  # a published protocol of LIBERO, for what is null below
    n_action_steps: int | None = Field(None, ge=1)  # actions of a chunk that are executed; None: profile's or policy's
    max_steps: int | None = Field(None, ge=1)  # per episode; None: profile's or environment's
    replay: int = Field(2, ge=0)  # demonstrations replayed first: a protocol that fails those is broken
    before: bool = True
    after: bool = True
    every: int | None = Field(None, ge=1)  # steps between evaluations during training; None: never
    during_episodes: int | None = Field(None, ge=1)  # per task, in those during training; None: `episodes`
    perturb: list[str] = []  # factors of rlspec_envs.perturbation, or "all": measured beside the scenes as they are
    strength: list[int] = [2]  # 1 to 3, how far each of them goes
    videos: int = Field(2, ge=0)  # episodes per task, and per perturbation, that are filmed
    video_format: Literal["mp4", "gif"] = "mp4"


class VlaRecipe(AnyRecipe):
    """A whole run of a robot's policy."""

    algorithm: Literal["bc", "grpo"]
    env: Env | None = None  # None: the policy is trained and not measured
    dataset: Dataset
    policy: Policy
    training: Training = Training()
    grpo: Grpo = Grpo()
    evaluation: SimEvaluation = SimEvaluation()

    @property
    def noise_level(self) -> float:
        """`grpo.noise_level`, or what suits the policy."""
        return self.grpo.noise_level or (0.1 if self.policy.type == REGRESSION else 0.5)

    @property
    def trained(self) -> str:
        """The policy."""
        return self.policy.name
