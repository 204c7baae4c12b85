"""The schema of a recipe that trains a language model.

TRL's own knobs live in the free mapping `trainer` and are checked against TRL's dataclass by
`rlspec.config.passthrough`, never declared again here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from rlspec.config.functions import is_function
from rlspec.config.schema import SEEDS, AnyRecipe, Lora, Place, Section

GENERATED = ("arithmetic", "words")  # data sets without a file


class ModelLora(Lora):
    """Adapters of a language model."""

    path: Place = Field(
        None, description="a run or folder whose adapters go on; what they have (r, alpha, ...) may be left out"
    )


class Model(Section):
    """Which policy is trained and how it is addressed."""

    name: str = Field(description="of the profile: what the run is called")
    path: Place = Field(None, description="hub id, local folder, run or GGUF file; null: built from `architecture`")
    revision: str | None = Field(None, description="of a hub id: a branch, tag or commit")
    architecture: dict[str, Any] | None = Field(
        None, description="keyword arguments of Qwen3Config, for a model built locally"
    )
    init: Place = Field(
        None, description="a run, or a folder with weights, to start from in place of `path`'s or random ones"
    )
    weights_dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="what weights are stored in; trainer.bf16 is mixed precision over float32 weights"
    )
    attn_implementation: str | None = Field(
        None, description="of training, by transformers' names; null: sdpa where there is"
    )
    enable_thinking: bool | None = Field(None, description="Qwen3's chat template switch; null: the template has none")
    system_prompt: str | None = Field(
        None, description="before every problem, where the chat template has a place for it"
    )
    instruction: str | None = Field(None, description="appended to every problem")
    lora: ModelLora | None = Field(None, description="adapters in place of full fine-tuning")
    freeze: list[str] = Field([], description="parameters that are not trained: regular expressions of their names")


class Columns(Section):
    r"""Names of a data set's columns; with dots of what stands in one: `reward_model.ground_truth`.

    `answer` may hold a whole solution (GSM8K `####`, or a last `\boxed{}`), `problem` a list with one message.
    """

    problem: str = Field("problem", description="the question, or a list with one message")
    answer: str | None = Field(
        "answer",
        description="the gold, or a whole solution (`####`, a last \\boxed{}); null: none, where programs are tested",
    )
    solution: str | None = Field(None, description="a worked solution, for algorithm: sft")
    level: str | None = Field(None, description="difficulty, a number or `Level 3`")


class Data(Section):
    """A set of problems with verifiable answers."""

    name: str = Field(description="of the profile: what measurements are called")
    path: Place = Field(None, description="hub id, or a local .jsonl/.json/.csv/.parquet file; null: generated")
    test_path: Place = Field(None, description="a local file with held-out problems; null: `test_split` of `path`")
    subset: str | None = Field(None, description="of a hub data set: its configuration")
    split: str = Field("train", description="of a hub data set: what is trained on")
    test_split: str | None = Field("test", description="null: hold out `test_fraction` by content hash")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="of the problems, held out where there is no test split")
    columns: Columns = Field(Columns(), description="what its columns are called")
    levels: list[int] | None = Field(None, description="keep only these difficulty levels")
    limit: int | None = Field(None, ge=1, description="use only the first N accepted problems")
    seed: int = Field(0, description="seed of generated problems and of the split")


class Batch(Section):
    """Batch sizes in prompts; TRL's numbers are derived by `rlspec.rlvr.training.batching`."""

    prompts_per_step: int = Field(16, ge=1, description="prompts in one optimizer step")
    samples_per_prompt: int = Field(8, ge=2, description="completions of each, TRL's num_generations")
    updates_per_generation: int = Field(
        1, ge=1, description="optimizer steps on disjoint parts of one block of rollouts"
    )
    micro_batch: int | None = Field(None, ge=1, description="completions per forward and backward pass on one device")
    skip_zero_advantages: bool = Field(
        False, description="no pass through the model for completions of groups without spread"
    )
    norm_test: bool = Field(
        False, description="say when micro-batches differ so much that the step's gradient is mostly noise"
    )
    norm_test_eta: float = Field(1.0, gt=0, description="noise may be so many times as large as the gradient")
    grow: bool = Field(False, description="double prompts_per_step where the norm test fails")
    grow_limit: int | None = Field(
        None, ge=2, description="most prompts of a step that grows; null: eight times prompts_per_step"
    )


class Evaluation(Section):
    """How a policy is measured, inside training and by `rlspec.evaluate` alike."""

    data: list[str] = Field([], description="names from recipes/data; empty: the held-out part of the training data")
    problems: int | None = Field(400, ge=1, description="per data set; null: all")
    samples: int = Field(8, ge=1, description="sampled completions per problem; 1 disables pass@k")
    k: list[int] = Field([1, 8], description="of pass@k, each at most `samples`")
    temperature: float = Field(1.0, gt=0, description="of the sampled completions")
    top_p: float = Field(1.0, gt=0, le=1, description="1: the whole vocabulary")
    top_k: int = Field(0, ge=0, description="0: the whole vocabulary")
    max_new_tokens: int | None = Field(None, ge=1, description="null: the trainer's max_completion_length")
    batch_size: int = Field(64, ge=1, description="sequences generated at once")
    seed: int = Field(1234, ge=0, lt=SEEDS, description="of the sampling")
    before: bool = Field(True, description="measure the policy before training")
    after: bool = Field(True, description="measure it afterwards")
    every: int | None = Field(
        None, ge=0, description="optimizer steps between evaluations during training; null or 0: never"
    )

    @property
    def unchanged(self) -> bool:
        """Whether answers are drawn from the policy's own distribution: temperature 1, the whole vocabulary."""
        return (self.temperature, self.top_p, self.top_k) == (1.0, 1.0, 0)


class Guard(Section):
    """Stops a collapsed run: the reward's running mean stayed below `fraction` of its best for `patience` steps.

    The best has to be above 0; of rewards below 0 the fraction counts from the lowest.
    And one that cannot learn: in no group of `spread` steps in a row did rewards differ, nor ever before; where they
    did, or every answer is right, that is said and the run goes on.
    """

    enabled: bool = Field(True, description="stop a run that collapsed or cannot learn")
    window: int = Field(5, ge=1, description="steps of the running mean")
    fraction: float = Field(
        0.5, gt=0, lt=1, description="of the best running mean, below which a step counts as collapsed"
    )
    patience: int = Field(10, ge=1, description="such steps in a row that end the run")
    spread: int = Field(
        20,
        ge=2,
        description="steps in a row without two rewards of one group that differ, which end a run that never had any",
    )


class Grader(Section):
    """The answer checker's worker processes."""

    workers: int = Field(2, ge=1, description="processes")
    timeout: float = Field(3.0, gt=0, le=3.0, description="seconds a verdict may take")


class Reward(Section):
    """A verifier, or a function of the user's in TRL's signature, and how much it counts."""

    name: str = Field(description="of recipes/reward, or module:function")
    weight: float = Field(1.0, description="factor of its score")
    pass_at: float | None = Field(
        None, description="score from which an evaluation counts an answer as right; null: the verifier's own"
    )
    options: dict[str, Any] = Field({}, description="of the verifier, see rlspec.config.rewards")


ONE, SEVERAL = "one", "several"  # stand in the place of a mistake that pydantic reports


Rewards = Annotated[
    Annotated[Reward, Tag(ONE)] | Annotated[list[Reward], Tag(SEVERAL)],
    Discriminator(lambda value: SEVERAL if isinstance(value, list) else ONE),
]


class Rollout(Section):
    """Which engine samples completions."""

    engine: Literal["transformers", "vllm"] = Field("transformers", description="what samples completions")


class Corruption(Section):
    """How worked solutions are spoilt for the warm start (probabilities): a stated, deliberate handicap."""

    drop_carry: float = Field(0.0, ge=0, le=1, description="a carry is forgotten")
    digit_slip: float = Field(0.0, ge=0, le=1, description="a digit is off by one")
    drop_box: float = Field(0.0, ge=0, le=1, description="the answer stands without a box")
    call: float = Field(
        0.0, ge=0, le=1, description="no mistake: the calculator is asked instead, where `tools` has it"
    )


class Recipe(AnyRecipe):
    """A whole run of a language model."""

    algorithm: Literal["grpo", "gmpo", "sft"] = Field(
        description="reinforcement learning by GRPO or GMPO, or imitation"
    )
    model: Model
    data: Data
    batch: Batch = Batch()
    trainer: dict[str, Any] = Field({}, description="TRL's own knobs, by their own names")
    rollout: Rollout = Rollout()
    tools: list[str] = Field(
        [], description="that the policy may call: calculator, or functions of yours, module:function"
    )
    environment: str | dict[str, str] | None = Field(
        None,
        description="module:Class, whose methods the policy may call; or several, by a row's `environment`",
    )
    reward: Rewards = Field(
        Reward(name="math"), description="of several the first decides what an evaluation calls right"
    )
    evaluation: Evaluation = Evaluation()
    guard: Guard = Guard()
    grader: Grader = Grader()
    corruption: Corruption | None = Field(None, description="only for algorithm: sft on data=arithmetic")
    box_answers: bool = Field(
        False, description="of algorithm: sft: a solution that boxes nothing ends in the gold's box"
    )

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
