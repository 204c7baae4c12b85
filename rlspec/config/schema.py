"""The schema of a recipe: what `recipes/*.yaml`, a run's `recipe.yaml` and command-line overrides may say.

Strict: unknown keys and wrong types are errors. Imports nothing heavier than pydantic, so that a bad key is answered in
well under a second. TRL's own knobs live in the free mapping `trainer` and are checked against TRL's dataclass by
`rlspec.config.passthrough`, never declared again here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    create_model,
    field_validator,
)
from pydantic.fields import FieldInfo

from rlspec.config.functions import is_function
from rlspec.optim.settings import (
    KnownRate,
    OptimizerSettings,
    RoleChanges,
    Split,
    Whose,
    declared_types,
    defaults,
    limits,
)

SEEDS = 2**32  # numpy's generators take no larger seed
GENERATED = ("arithmetic", "words")  # data sets without a file
Options = dict[str, bool | int | float | str]


class Section(BaseModel):
    """A mapping of a recipe. Unknown keys are refused; `1` is not a string and `"1"` not a number."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        validate_default=True,
        allow_inf_nan=False,
        defer_build=True,  # import is quick
    )


@dataclass(frozen=True)
class Key:
    """How a field stands in a command's usage, as metadata of its type: `Annotated[float, Key("of the run", "S")]`.

    Attributes:
        about: A phrase; the usage adds the default where it says something.
        value: Stands for the value, as in `seconds=S`; empty: by the type, and a flag `--key` for what is false.
        group: Heading of this key and of those that follow.
        empty: Whether `key=` is a value.
    """

    about: str
    value: str = ""
    group: str = ""
    empty: bool = False


def key_of(field: FieldInfo) -> Key | None:
    """The metadata of a field for usages."""
    return next((item for item in field.metadata if isinstance(item, Key)), None)


def _named(text: str | None) -> str | None:
    if text is not None and not text.strip():
        raise ValueError("no value; leave it out, or give one")
    return text


NAMED = AfterValidator(_named)
Place = Annotated[str | None, NAMED]  # a file, folder or hub id


class Lora(Section):
    """Adapters (peft); absent means full fine-tuning."""

    method: Literal["lora", "fourierft"] = "lora"  # FourierFT has neither r, alpha, dropout nor use_rslora
    r: int = Field(16, ge=1)
    alpha: float = Field(32.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    use_rslora: bool = False
    options: dict[str, Any] = {}  # peft's other knobs: init_lora_weights: pissa, use_dora: true, n_frequency: 1000


class ModelLora(Lora):
    """Adapters of a language model."""

    path: Place = None  # a run or folder whose adapters go on; what they have (r, alpha, ...) may be left out


class Model(Section):
    """Which policy is trained and how it is addressed."""

    name: str
    path: Place = None  # hub id, local folder, run or GGUF file; None: built from `architecture`
    revision: str | None = None
    architecture: dict[str, Any] | None = None  # keyword arguments of Qwen3Config, for a model built locally
    init: Place = None  # a run, or a folder with weights, to start from in place of `path`'s or random ones
    weights_dtype: Literal["float32", "bfloat16"] = "float32"
    attn_implementation: str | None = None  # of training, by transformers' names; None: sdpa where there is
    enable_thinking: bool | None = None  # Qwen3's chat template switch; None: the template has none
    system_prompt: str | None = None
    instruction: str | None = None  # appended to every problem
    lora: ModelLora | None = None
    freeze: list[str] = []  # parameters that are not trained: regular expressions of their names


class Columns(Section):
    r"""Names of a data set's columns; with dots of what stands in one: `reward_model.ground_truth`.

    `answer` may hold a whole solution (GSM8K `####`, or a last `\boxed{}`), `problem` a list with one message.
    """

    problem: str = "problem"
    answer: str | None = "answer"  # None: there is no gold, as where programs are tested
    solution: str | None = None
    level: str | None = None


class Data(Section):
    """A set of problems with verifiable answers."""

    name: str
    path: Place = None  # hub id, or a local .jsonl/.json/.csv/.parquet file; None: one of GENERATED
    test_path: Place = None  # a local file with held-out problems; None: `test_split` of `path`
    subset: str | None = None
    split: str = "train"
    test_split: str | None = "test"  # None: hold out `test_fraction` by content hash
    test_fraction: float = Field(0.2, gt=0, lt=1)
    columns: Columns = Columns()
    levels: list[int] | None = None  # keep only these difficulty levels
    limit: int | None = Field(None, ge=1)  # use only the first N accepted problems
    seed: int = 0  # seed of generated problems and of the split


def _derived(declaration: type) -> type[Section]:
    """A section with the fields, defaults and limits of a dataclass."""
    values, within = defaults(declaration), limits(declaration)
    fields: dict[str, Any] = {}
    for name, kind in declared_types(declaration).items():
        constraints: dict[str, Any] = within.get(name, {})
        fields[name] = (kind, Field(values[name], **constraints))
    return create_model(declaration.__name__, __base__=Section, **fields)


if TYPE_CHECKING:

    class _Settings(Section, OptimizerSettings):
        pass

    class _OfRole(Section, RoleChanges):
        pass

    class LrFrom(Section, KnownRate):
        """Where a learning rate is known."""

else:
    _Settings, _OfRole, LrFrom = _derived(OptimizerSettings), _derived(RoleChanges), _derived(KnownRate)


class RoleSettings(_OfRole):
    """What a role or a part of the model gets over the defaults."""

    options: Options = {}


class Override(RoleSettings):
    """Ordered rule for parameters whose name matches the regular expression `pattern`; first match wins."""

    pattern: str


class Penalty(Section):
    """What is added to the loss's gradient in every step, on the matrices of some roles."""

    name: Literal["orthonormal", "orthogonal", "relaxed_orthogonal"]  # SORSA's is the first
    roles: list[str] = Field(min_length=1)  # or beginnings of them: [lora], [attention.v]
    weight: float = Field(4e-4, gt=0)


class Optim(_Settings):
    """The optimizer: one rule per role of a parameter, with the settings of `rlspec.optim.settings`.

    A rule is a line of `rlspec.optim.rules.RULES`, or one that a plugin registers; a preset is a file of recipes/optim,
    which names a rule and its settings.
    """

    name: str  # of the preset, or the rule's where there is none: what the run is called
    rule: str  # of matrices; embeddings, norms and LoRA factors get AdamW. An elementwise rule is that of everything
    lr: float = Field(1e-6, gt=0)
    lr_from: LrFrom | None = None  # a good rate of another rule, batch or width, from which each parameter gets its own
    roles: (
        dict[str, RoleSettings] | Literal["symmetric", "vla", "vla_openpi"]
    ) = {}  # role or part of the model -> rule or settings; or a preset
    adamw_lr_scale: float = Field(1.0, gt=0)  # of what AdamW updates beside the rule: embeddings, output layer, norms
    split: Split = "heads"
    settings: Whose = "ours"  # paper: each rule's are its paper's, over all of these, under what a role or pattern says
    options: Options = {}  # of the rule
    overrides: list[Override] = []
    penalties: list[Penalty] = []
    plugins: list[str] = []  # modules to import, which register rules
    skip_zero_gradients: bool = True  # see rlspec.optim.settings.Running; false: every step counts, as with torch's

    @field_validator("roles", mode="before")
    @classmethod
    def _rule_alone(cls, roles: Any) -> Any:
        """A role's rule may stand for its settings."""
        if not isinstance(roles, dict):
            return roles
        return {role: {"rule": value} if isinstance(value, str) else value for role, value in roles.items()}


class Batch(Section):
    """Batch sizes in prompts; TRL's numbers are derived by `rlspec.rlvr.batching`."""

    prompts_per_step: int = Field(16, ge=1)  # prompts in one optimizer step
    samples_per_prompt: int = Field(8, ge=2)
    updates_per_generation: int = Field(1, ge=1)  # optimizer steps on disjoint parts of one block of rollouts
    micro_batch: int | None = Field(None, ge=1)  # completions per forward and backward pass on one device
    skip_zero_advantages: bool = False  # no pass through the model for completions of groups without spread
    norm_test: bool = False  # say when micro-batches differ so much that the step's gradient is mostly noise
    norm_test_eta: float = Field(1.0, gt=0)  # noise may be so many times as large as the gradient
    grow: bool = False  # double prompts_per_step where the norm test fails,
    grow_limit: int | None = Field(None, ge=2)  # up to so many prompts; None: eight times prompts_per_step


class Evaluation(Section):
    """How a policy is measured, inside training and by `rlspec.evaluate` alike."""

    data: list[str] = []  # names from recipes/data; empty: the held-out part of the training data
    problems: int | None = Field(400, ge=1)  # per data set; None: all
    samples: int = Field(8, ge=1)  # sampled completions per problem; 1 disables pass@k
    k: list[int] = [1, 8]
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_new_tokens: int | None = Field(None, ge=1)  # None: the trainer's max_completion_length
    batch_size: int = Field(64, ge=1)  # sequences generated at once
    seed: int = Field(1234, ge=0, lt=SEEDS)
    before: bool = True
    after: bool = True
    every: int | None = Field(None, ge=0)  # optimizer steps between evaluations during training; None or 0: never

    @property
    def unchanged(self) -> bool:
        """Whether answers are drawn from the policy's own distribution: temperature 1, the whole vocabulary."""
        return (self.temperature, self.top_p, self.top_k) == (1.0, 1.0, 0)


class Guard(Section):
    """Stops a collapsed run: the reward's running mean stayed below `fraction` of its best for `patience` steps.

    The best has to be above 0; of rewards below 0 the fraction counts from the lowest.
    And one that cannot learn: in no group of `spread` steps in a row did rewards differ.
    """

    enabled: bool = True
    window: int = Field(5, ge=1)
    fraction: float = Field(0.5, gt=0, lt=1)
    patience: int = Field(10, ge=1)
    spread: int = Field(20, ge=2)


class Checkpoints(Section):
    """What is kept in `<run>/checkpoints`."""

    every: int | None = Field(None, ge=0)  # optimizer steps; None or 0: only at the end
    keep_last: int = Field(2, ge=1)
    keep_best: bool = True  # by sampled pass@1 of the evaluations during training


class Grader(Section):
    """The answer checker's worker processes."""

    workers: int = Field(2, ge=1)
    timeout: float = Field(3.0, gt=0, le=3.0)  # seconds a verdict may take


class Reward(Section):
    """A verifier, or a function of the user's in TRL's signature, and how much it counts."""

    name: str  # of recipes/reward, or module:function
    weight: float = 1.0
    pass_at: float | None = None  # score from which an evaluation counts an answer as right; None: the verifier's own
    options: dict[str, Any] = {}  # of the verifier, see rlspec.config.rewards


ONE, SEVERAL = "one", "several"  # stand in the place of a mistake that pydantic reports
Rewards = Annotated[
    Annotated[Reward, Tag(ONE)] | Annotated[list[Reward], Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if isinstance(value, list) else ONE),
]


class Rollout(Section):
    """Which engine samples completions."""

    engine: Literal["transformers", "vllm"] = "transformers"


class Launch(Section):
    """How a run gets its processes: `launch=torchrun launch.processes=2`."""

    by: Literal["here", "torchrun", "accelerate", "slurm"] = (
        "here"  # here: this process, or what the user's launcher made
    )
    processes: int = Field(1, ge=1)  # all together, one per device
    nodes: int = Field(1, ge=1)  # of Slurm
    minutes: int = Field(1440, ge=1)  # Slurm's limit
    cluster: Literal["slurm", "local"] = "slurm"  # local: submitit's executor on this machine, to try a job
    folder: Annotated[str, NAMED] = "checkpoints/slurm"  # where Slurm's logs go
    options: dict[str, Any] = {}  # submitit's: slurm_partition, gpus_per_node, cpus_per_task, mem_gb, ...


class Report(Section):
    """Where metrics go. JSONL and plots are always written."""

    tensorboard: bool = True
    wandb: bool = False
    display: Literal["auto", "rich", "plain"] = "auto"


class Corruption(Section):
    """How worked solutions are spoilt for the warm start (probabilities): a stated, deliberate handicap."""

    drop_carry: float = Field(0.0, ge=0, le=1)
    digit_slip: float = Field(0.0, ge=0, le=1)
    drop_box: float = Field(0.0, ge=0, le=1)
    call: float = Field(0.0, ge=0, le=1)  # no mistake: the calculator is asked instead, where `tools` has it


class AnyRecipe(Section):
    """A whole run, whatever is trained: what its beginning, its end and its processes go by."""

    recipe: str
    algorithm: str
    seed: int = Field(0, ge=0, lt=SEEDS)
    run: Place = None  # name of the run directory; None: <recipe>-<what is trained>-<optim>-seed<seed>
    output_dir: Annotated[str, NAMED, AfterValidator(os.path.expanduser)] = "checkpoints"
    resume: Place = None  # a run directory, a checkpoint in one, or "auto"
    push: str | None = None  # OWNER/NAME on the Hugging Face hub, to which a finished run's weights are uploaded
    device: Literal["auto", "cpu", "cuda"] = "auto"
    launch: Launch = Launch()
    sharding: Literal["ddp", "fsdp2"] = "ddp"  # of several processes: whole weights on each, or parts of all layers
    optim: Optim
    checkpoints: Checkpoints = Checkpoints()
    report: Report = Report()

    @property
    def trained(self) -> str:
        """Name of what is trained."""
        raise NotImplementedError

    @property
    def run_name(self) -> str:
        """Name of the run directory below `output_dir`."""
        return self.run or f"{self.recipe}-{self.trained}-{self.optim.name}-seed{self.seed}"


class Recipe(AnyRecipe):
    """A whole run of a language model."""

    algorithm: Literal["grpo", "gmpo", "sft"]
    model: Model
    data: Data
    batch: Batch = Batch()
    trainer: dict[str, Any] = {}  # TRL's own knobs, by their own names
    rollout: Rollout = Rollout()
    tools: list[str] = []  # that the policy may call: calculator, or functions of yours, module:function
    # A class whose methods it may call, module:Class; or several, by the name in a row's column `environment`.
    environment: str | dict[str, str] | None = None
    reward: Rewards = Reward(name="math")  # of several the first decides what an evaluation calls right
    evaluation: Evaluation = Evaluation()
    guard: Guard = Guard()
    grader: Grader = Grader()
    corruption: Corruption | None = None  # only for algorithm: sft on data=arithmetic
    box_answers: bool = False  # of algorithm: sft: a solution that boxes nothing ends in the gold's box

    @field_validator("tools", mode="before")
    @classmethod
    def _tool_alone(cls, tools: Any) -> Any:
        """One may stand without a list."""
        return [tools] if isinstance(tools, str) else tools

    @field_validator("reward", mode="before")
    @classmethod
    def _rewards_by_name(cls, reward: Any) -> Any:
        """In a list a name may stand for a reward."""
        named = isinstance(reward, list)
        return [{"name": each} if isinstance(each, str) else each for each in reward] if named else reward

    @property
    def rewards(self) -> list[Reward]:
        """One or several, in the recipe's order."""
        return self.reward if isinstance(self.reward, list) else [self.reward]

    @property
    def whole_rows(self) -> bool:
        """Whether something is told all columns of a row, so that rows of one text may be several problems."""
        told = (reward.name == "python" or is_function(reward.name) for reward in self.rewards)
        return self.environment is not None or any(told)

    @property
    def trained(self) -> str:
        """The model."""
        return self.model.name
