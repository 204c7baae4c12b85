"""Rules across the sections of a robot's recipe: each yields a line per violation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rlspec.config.adapters import check_lora
from rlspec.config.checks import optimizer, option_names, rule_names, upload, whole_matrices
from rlspec.config.lerobot_sources import (
    policy_fields,
    policy_types,
    scheduler_fields,
    scheduler_types,
    transform_fields,
)
from rlspec.config.paths import show
from rlspec.config.sources import Knob
from rlspec.config.vla_schema import Env, Grpo, Policy, Training, VlaRecipe
from rlspec.contract.actions import JOINT_VELOCITY
from rlspec.contract.policies import WITH_LIKELIHOOD
from rlspec.errors import nearest

Lines = Iterator[str]

# Field of a policy's config -> what to use instead.
_REPLACED = {
    "device": "device",
    "use_amp": "training.bf16",
    "use_peft": "policy.lora",
    "pretrained_path": "policy.path",
    "push_to_hub": "push=OWNER/NAME",
    "repo_id": "push=OWNER/NAME",
    "private": "push=OWNER/NAME",
    "tags": "push=OWNER/NAME",
    "license": "push=OWNER/NAME",
    "input_features": "dataset.*: the features are those of the data",
    "output_features": "dataset.*: the features are those of the data",
}
_OPTIMIZER = ("optimizer_", "scheduler_")


def broken_vla_rules(recipe: VlaRecipe) -> list[str]:
    """One line per violated rule.

    Raises:
        ConfigError: LeRobot is not installed.
    """
    return [line for rule in RULES for line in rule(recipe)]


def missing_values(recipe: VlaRecipe) -> Lines:
    """`???` in a recipe's file stands for what the command line must give."""
    places = (
        ("policy.type", recipe.policy.type),
        ("policy.path", recipe.policy.path),
        ("dataset.repo_id", recipe.dataset.repo_id),
        ("dataset.root", recipe.dataset.root),
    )
    for key, value in places:
        if value == "???":
            yield f"{key}: required; add {key}=..."


def names(recipe: VlaRecipe) -> Lines:
    """Names that become parts of a path."""
    given = [("run", recipe.run), ("policy.name", recipe.policy.name), ("dataset.name", recipe.dataset.name)]
    for key, value in [*given, ("env.name", recipe.env.name if recipe.env else None)]:
        if value is not None and not re.fullmatch(r"[\w][\w.+-]*", value, re.ASCII):
            yield f"{key}={value}: must be letters, digits, and . _ - +"


def policy_options(recipe: VlaRecipe) -> Lines:
    """The policy is known to LeRobot or to us, and its fields by name."""
    policy, known = recipe.policy, policy_types()
    if policy.type == "???":
        return
    if policy.type not in known:
        yield f"policy.type={show(policy.type)}: unknown; {nearest(policy.type, known)}"
        return
    fields = policy_fields(policy.type)
    for name, value in policy.options.items():
        key = f"policy.options.{name}"
        if name in _REPLACED:
            yield f"{key}={show(value)}: set by rlspec; use {_REPLACED[name]}"
        elif name.startswith(_OPTIMIZER):
            yield f"{key}={show(value)}: LeRobot's preset is not used; set optim.* or training.scheduler"
        else:
            yield from _check_field(key, name, value, fields)
    if policy.norm_stats == "checkpoint" and policy.path is None:
        yield "policy.norm_stats=checkpoint: there is no checkpoint; add policy.path, or set null"
    if policy.fresh and policy.path is None:
        yield "policy.fresh: only of pretrained weights; add policy.path, or drop it"
    if policy.lora is not None:
        yield from check_lora("policy.lora", policy.lora)
        yield from _new_parts(policy)


def _new_parts(policy: Policy) -> Lines:
    """Adapters correct weights: what is new stands still unless it is trained whole."""
    lora = policy.lora
    assert lora is not None
    if policy.path is None and not lora.full_training:
        yield (
            "policy.lora: adapters correct pretrained weights; add policy.path, or name the parts that are new: "
            "policy.lora.full_training=[action]"
        )
    if still := [part for part in policy.fresh if part not in lora.full_training]:
        yield f"policy.fresh: adapters would leave {', '.join(still)} as it begins; add it to policy.lora.full_training"


def freezing(recipe: VlaRecipe) -> Lines:
    """Every entry names its parameters in one way."""
    for index, entry in enumerate(recipe.policy.freeze):
        key = f"policy.freeze.{index}"
        if (entry.part is None) == (entry.pattern is None):
            yield f"{key}: give either part or pattern"
        if entry.pattern is not None:
            try:
                re.compile(entry.pattern)
            except re.error as error:
                yield f"{key}.pattern={entry.pattern}: no regular expression: {error}"


def schedule(recipe: VlaRecipe) -> Lines:
    """The scheduler is LeRobot's."""
    settings = dict(recipe.training.scheduler)
    kind, known = settings.pop("type", None), scheduler_types()
    if kind not in known:
        yield f"training.scheduler.type={show(kind)}: unknown; {nearest(str(kind), known)}"
        return
    fields = scheduler_fields(kind)
    for name, value in settings.items():
        yield from _check_field(f"training.scheduler.{name}", name, value, fields)


def augmentation(recipe: VlaRecipe) -> Lines:
    """Image transforms are LeRobot's."""
    fields = transform_fields()
    for name, value in recipe.training.augmentation.items():
        yield from _check_field(f"training.augmentation.{name}", name, value, fields)


def data_source(recipe: VlaRecipe) -> Lines:
    """Data comes from one place."""
    data = recipe.dataset
    generated = {"demonstrations": data.demonstrations, "recordings": data.recordings}
    given = [name for name, section in generated.items() if section is not None]
    if not given and data.repo_id is None and data.root is None:
        yield "dataset.repo_id: required; a hub id, or dataset.root=FOLDER, or dataset=demonstrations"
    if len(given) > 1:
        yield "dataset.recordings: not together with dataset.demonstrations; set one of them null"
    for name in given:
        if data.repo_id is not None:
            yield f"dataset.repo_id={data.repo_id}: not together with dataset.{name}"
        if recipe.env is None:
            yield f"env: required; {name} are generated in it"
    if data.recordings is not None and recipe.env is not None:
        yield from _recordings(recipe.env)
    if "env" in data.tasks and recipe.env is None:
        yield "dataset.tasks=env: there is no env whose tasks could be meant; name tasks or suites, or [] for all"
    if data.episodes == []:
        yield "dataset.episodes=[]: must be null or name at least one episode"


def no_such_task(suite: str, task: str, known: Sequence[str]) -> str:
    """What to say of a task that a suite does not list; LIBERO's are numbered, and often called by their words."""
    from rlspec_envs import task_called

    if (number := task_called(suite, task)) is not None:
        return f"{suite} numbers its tasks, that is {number}"
    return f"{suite} has no such task; {nearest(task, known)}"


def without_expert(env: Env, key: str) -> Lines:
    """Scripts demonstrate some tasks only."""
    from rlspec_envs import SUITES, expert_tasks, list_tasks

    if env.suite not in SUITES:
        return
    scripted = expert_tasks(env.suite)
    missing = [task for task in env.tasks or list_tasks(env.suite) if task not in scripted]
    if missing and not scripted:
        having = ", ".join(suite for suite in SUITES if expert_tasks(suite))
        yield (
            f"{key}: no task of {env.suite} has a scripted expert, those of {having} have; "
            "use published demonstrations (dataset=libero)"
        )
    elif missing:
        yield (
            f"{key}: {env.suite} has no scripted expert of task {', '.join(missing)}; choose from those that have one "
            f"(task=, in recipes env.tasks): {', '.join(scripted)}"
        )


def _recordings(env: Env) -> Lines:
    """DROID's robots are Frankas that take joint velocities."""
    space = env.options.get("action_space")
    if env.suite != "franka":
        yield f"env.suite={show(env.suite)}: recordings are of the Franka; use env=franka_droid"
    elif space != JOINT_VELOCITY:
        yield f"env.options.action_space={show(space)}: recordings have {JOINT_VELOCITY}; use env=franka_droid"


def simulator(recipe: VlaRecipe) -> Lines:
    """The suite and its tasks exist."""
    if recipe.env is None:
        return
    from rlspec_envs import SUITES, list_tasks

    if recipe.env.suite not in SUITES:
        yield f"env.suite={show(recipe.env.suite)}: unknown; {nearest(recipe.env.suite, SUITES)}"
        return
    known = list_tasks(recipe.env.suite)
    for task in recipe.env.tasks:
        if task not in known:
            yield f"env.tasks={show(task)}: {no_such_task(recipe.env.suite, task, known)}"
    yield from _perturbations(recipe.evaluation.perturb, recipe.evaluation.strength)
    if recipe.evaluation.profile is not None and not recipe.env.suite.startswith("libero"):
        yield f"evaluation.profile={recipe.evaluation.profile}: a protocol of LIBERO; set null for {recipe.env.suite}"


def early_end(recipe: VlaRecipe) -> Lines:
    """Training that ends at a success rate needs evaluations that measure it."""
    if recipe.evaluation.stop_at_success is None:
        return
    if recipe.env is None:
        yield "evaluation.stop_at_success: needs a simulator, env=..."
    if recipe.evaluation.every is None:
        yield "evaluation.stop_at_success: needs evaluations during training, evaluation.every=STEPS"


def _perturbations(factors: Sequence[str], strengths: Sequence[int]) -> Lines:
    from rlspec_envs.perturbation import STRENGTHS, expand

    if strange := [strength for strength in strengths if strength not in STRENGTHS]:
        yield f"evaluation.strength={strange[0]}: must be some of {', '.join(map(str, STRENGTHS))}"
    elif factors and not strengths:
        yield f"evaluation.strength=[]: must name at least one of {', '.join(map(str, STRENGTHS))}"
    else:
        try:
            expand(factors, strengths)
        except ValueError as error:
            yield f"evaluation.{error}"


def reinforcement(recipe: VlaRecipe) -> Lines:
    """GRPO has a start, a simulator and a likelihood, and nothing that only imitation reads."""
    grpo, policy, training = recipe.grpo, recipe.policy, recipe.training
    if recipe.algorithm != "grpo":
        if grpo != Grpo():
            yield "grpo: only for algorithm: grpo; use recipe=vla_grpo_franka"
        return
    if policy.type in policy_types() and policy.type not in WITH_LIKELIHOOD:
        yield f"policy.type={policy.type}: it has no likelihood to reinforce; choose {', '.join(WITH_LIKELIHOOD)}"
    if recipe.env is None and recipe.dataset.demonstrations is None and recipe.dataset.recordings is None:
        yield "env: required; its episodes are what is learnt from"
    if policy.path is None and grpo.start is None:
        yield "policy.path: required; a run or a checkpoint to start from, or grpo.start for one that is trained first"
    if policy.fresh:
        yield "policy.fresh: a new part succeeds at nothing, so there is nothing to reinforce; drop it"
    low, high = grpo.success
    if not 0 <= low < high <= 1:
        yield f"grpo.success=[{low:g},{high:g}]: must be two shares, the lower one first"
    if grpo.groups_per_step % grpo.mini_batches:
        yield f"grpo.mini_batches={grpo.mini_batches}: must divide grpo.groups_per_step={grpo.groups_per_step}"
    if training.gradient_checkpointing:
        yield "training.gradient_checkpointing=true: grpo runs the policy in evaluation mode; set it false"
    for name in ("gradient_accumulation", "augmentation", "random_shift", "num_workers", "held_out"):
        if (value := getattr(training, name)) != Training.model_fields[name].default:
            yield f"training.{name}={show(value)}: grpo reads no data set; leave it out"


def _check_field(key: str, name: str, value: Any, fields: Mapping[str, Knob]) -> Lines:
    if name not in fields:
        yield f"{key}={show(value)}: LeRobot has no such field there; {nearest(name, fields)}"
    elif not fields[name].accepts(value):
        yield f"{key}={show(value)}: must be {fields[name].allowed}"


def processes(recipe: VlaRecipe) -> Lines:
    """What several processes cannot share."""
    if recipe.algorithm == "grpo" and (recipe.launch.processes > 1 or recipe.sharding == "fsdp2"):
        key = "launch.processes" if recipe.launch.processes > 1 else "sharding"
        yield f"{key}: grpo trains in one process, whose grpo.workers run the episodes; leave launch and sharding out"


RULES = (
    processes,
    whole_matrices,
    missing_values,
    names,
    policy_options,
    freezing,
    schedule,
    augmentation,
    data_source,
    simulator,
    early_end,
    reinforcement,
    optimizer,
    rule_names,
    option_names,
    upload,
)
