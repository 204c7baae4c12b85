"""The schema of a recipe: what `recipes/*.yaml`, a run's `recipe.yaml` and command-line overrides may say.

Strict: unknown keys and wrong types are errors. Imports nothing heavier than pydantic, so that a bad key is answered in
well under a second. Here is what every run has; `rlvr_schema` and `vla_schema` have what is trained. A field's
description is what `python -m rlspec.train recipe=NAME --print` says of the key.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from inspect import cleandoc
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    create_model,
    field_validator,
)
from pydantic.fields import FieldInfo

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


def documented(declaration: type) -> dict[str, str]:
    """Name -> what a field means, off the section `Attributes:` of its docstring, or of a base's where it has none."""
    found: dict[str, str] = {}
    for each in reversed(declaration.__mro__):
        text = cleandoc(each.__doc__ or "").partition("Attributes:\n")[2]
        listed = re.split(r"^\S", text, maxsplit=1, flags=re.MULTILINE)[0]  # up to the next section
        for entry in re.split(r"^    (?=\w+(?:, \w+)*: )", listed, flags=re.MULTILINE)[1:]:
            names, about = entry.split(": ", 1)
            found |= dict.fromkeys(names.split(", "), " ".join(about.split()).rstrip("."))
    return found


def _named(text: str | None) -> str | None:
    if text is not None and not text.strip():
        raise ValueError("no value; leave it out, or give one")
    return text


NAMED = AfterValidator(_named)
Place = Annotated[str | None, NAMED]  # a file, folder or hub id


class Lora(Section):
    """Adapters (peft); absent means full fine-tuning."""

    method: Literal["lora", "fourierft"] = Field(
        "lora", description="FourierFT has neither r, alpha, dropout nor use_rslora"
    )
    r: int = Field(16, ge=1, description="rank")
    alpha: float = Field(32.0, gt=0, description="the adapter's product is scaled by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="of what enters an adapter, in training")
    target_modules: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        description="modules that get adapters, by the end of their names",
    )
    use_rslora: bool = Field(False, description="alpha / sqrt(r) in its place")
    options: dict[str, Any] = Field(
        {}, description="peft's other knobs: init_lora_weights: pissa, use_dora: true, n_frequency: 1000"
    )


def _derived(declaration: type) -> type[Section]:
    """A section with the fields, defaults and limits of a dataclass."""
    values, within, about = defaults(declaration), limits(declaration), documented(declaration)
    fields: dict[str, Any] = {}
    for name, kind in declared_types(declaration).items():
        constraints: dict[str, Any] = within.get(name, {})
        fields[name] = (kind, Field(values[name], description=about[name], **constraints))
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

    options: Options = Field({}, description="of the rule")


class Override(RoleSettings):
    """Ordered rule for parameters whose name matches the regular expression `pattern`; first match wins."""

    pattern: str = Field(description="regular expression, looked for in the parameter's name")


class Penalty(Section):
    """What is added to the loss's gradient in every step, on the matrices of some roles."""

    name: Literal["orthonormal", "orthogonal", "relaxed_orthogonal"] = Field(description="SORSA's is the first")
    roles: list[str] = Field(min_length=1, description="or beginnings of them: [lora], [attention.v]")
    weight: float = Field(4e-4, gt=0, description="factor of the penalty")


class Optim(_Settings):
    """The optimizer: one rule per role of a parameter, with the settings of `rlspec.optim.settings`.

    A rule is a line of `rlspec.optim.rules.RULES`, or one that a plugin registers; a preset is a file of recipes/optim,
    which names a rule and its settings.
    """

    name: str = Field(description="of the preset, or the rule's where there is none: what the run is called")
    rule: str = Field(description="of matrices, the rest gets AdamW; an elementwise rule is that of everything")
    lr: float = Field(1e-6, gt=0, description="of matrices; what the schedule scales")
    lr_from: LrFrom | None = Field(
        None, description="a good rate of another rule, batch or width, from which each parameter gets its own"
    )
    roles: dict[str, RoleSettings] | Literal["symmetric", "vla", "vla_openpi"] = Field(
        {}, description="role or part of the model -> rule or settings; or a preset"
    )
    adamw_lr_scale: float = Field(
        1.0, gt=0, description="of what AdamW updates beside the rule: embeddings, output layer, norms"
    )
    split: Split = Field(
        "heads", description="heads: attention's matrices are updated head by head; whole: as they are stored"
    )
    settings: Whose = Field(
        "ours", description="paper: each rule's are its paper's, over all of these, under what a role or pattern says"
    )
    options: Options = Field({}, description="of the rule")
    overrides: list[Override] = Field([], description="settings by a parameter's name; the first that matches wins")
    penalties: list[Penalty] = Field([], description="what is added to the gradients of some roles")
    plugins: list[str] = Field([], description="modules to import, which register rules")
    skip_zero_gradients: bool = Field(
        True, description="see rlspec.optim.settings.Running; false: every step counts, as with torch's"
    )

    @field_validator("roles", mode="before")
    @classmethod
    def _rule_alone(cls, roles: Any) -> Any:
        """A role's rule may stand for its settings."""
        if not isinstance(roles, dict):
            return roles
        return {role: {"rule": value} if isinstance(value, str) else value for role, value in roles.items()}


class Checkpoints(Section):
    """What is kept in `<run>/checkpoints`."""

    every: int | None = Field(None, ge=0, description="optimizer steps; null or 0: only at the end")
    keep_last: int = Field(2, ge=1, description="so many of them, besides the best")
    keep_best: bool = Field(
        True, description="by the evaluations during training: sampled pass@1 of the first data set, a robot's success"
    )


class Launch(Section):
    """How a run gets its processes: `launch=torchrun launch.processes=2`."""

    by: Literal["here", "torchrun", "accelerate", "slurm"] = Field(
        "here", description="here: this process, or what the user's launcher made"
    )
    processes: int = Field(1, ge=1, description="all together, one per device")
    nodes: int = Field(1, ge=1, description="of Slurm")
    minutes: int = Field(1440, ge=1, description="Slurm's limit")
    cluster: Literal["slurm", "local"] = Field(
        "slurm", description="local: submitit's executor on this machine, to try a job"
    )
    folder: Annotated[str, NAMED] = Field("checkpoints/slurm", description="where Slurm's logs go")
    options: dict[str, Any] = Field(
        {}, description="submitit's: slurm_partition, gpus_per_node, cpus_per_task, mem_gb, ..."
    )


class Report(Section):
    """Where metrics go. JSONL and plots are always written."""

    tensorboard: bool = Field(True, description="write TensorBoard's files too")
    wandb: bool = Field(False, description="log to Weights & Biases too")
    display: Literal["auto", "rich", "plain"] = Field(
        "auto", description="rich: a live table; plain: a line per step; auto: rich in a terminal"
    )


class AnyRecipe(Section):
    """A whole run, whatever is trained: what its beginning, its end and its processes go by."""

    recipe: str = Field(description="of the file: what the run is called")
    algorithm: str = Field(description="what is trained how")
    seed: int = Field(0, ge=0, lt=SEEDS, description="of everything that is drawn in training")
    run: Place = Field(
        None, description="name of the run directory; null: <recipe>-<what is trained>-<optim>-seed<seed>"
    )
    output_dir: Annotated[str, NAMED, AfterValidator(os.path.expanduser)] = Field(
        "checkpoints", description="where runs are kept"
    )
    resume: Place = Field(None, description='a run directory, a checkpoint in one, or "auto"')
    push: str | None = Field(
        None, description="OWNER/NAME on the Hugging Face hub, to which a finished run's weights are uploaded"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU where there is one")
    launch: Launch = Launch()
    sharding: Literal["ddp", "fsdp2"] = Field(
        "ddp", description="of several processes: whole weights on each, or parts of all layers"
    )
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
