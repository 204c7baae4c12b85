"""Rules across the sections of a recipe, one function each: it yields a line per violation."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from typing import Literal, Protocol

from rlspec.config.adapters import check_lora, moves_the_base
from rlspec.config.gguf_header import gguf_fault, is_gguf
from rlspec.config.passthrough import check_architecture, check_trainer
from rlspec.config.paths import list_group, show
from rlspec.config.rewards import check_reward
from rlspec.config.rlvr_schema import GENERATED, Recipe
from rlspec.config.rules import import_plugins, known_options, known_rules, list_optimizers, pair_rules, preset
from rlspec.config.schema import Optim, RoleSettings
from rlspec.config.tools import tool_use
from rlspec.errors import nearest

Lines = Iterator[str]


class HasOptim(Protocol):
    """Any kind of recipe."""

    optim: Optim
    push: str | None
    sharding: Literal["ddp", "fsdp2"]


def broken_rules(recipe: Recipe) -> list[str]:
    """One line per violated rule.

    Raises:
        ConfigError: TRL is not installed.
    """
    return [line for rule in RULES for line in rule(recipe)]


def missing_values(recipe: Recipe) -> Lines:
    """`???` in a recipe's file stands for what the command line must give."""
    named = [("model.path", recipe.model.path), ("data.path", recipe.data.path)]
    for reward in recipe.rewards:
        named.append(("reward.name", reward.name))
        named += [(f"reward.options.{key}", value) for key, value in reward.options.items()]
    for key, value in named:
        if value == "???":
            yield f"{key}: required; add {key}=..."


def names(recipe: Recipe) -> Lines:
    """Names that become parts of a path."""
    for key, value in (("run", recipe.run), ("model.name", recipe.model.name)):
        if value is not None and not re.fullmatch(r"[\w][\w.+-]*", value, re.ASCII):
            yield f"{key}={value}: must be letters, digits, and . _ - +"


def trainer_knobs(recipe: Recipe) -> Lines:
    """TRL's knobs are known, of the right type, and effective."""
    yield from check_trainer(recipe.algorithm, recipe.trainer, engine=recipe.rollout.engine)


def installed(recipe: Recipe) -> Lines:
    """Libraries that only some recipes need."""
    if recipe.trainer.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        yield "trainer.use_liger_kernel=true: liger-kernel is not installed; install it, or leave the key out"


def factor_rules(recipe: Recipe) -> Lines:
    """A rule for pairs of LoRA factors finds none without LoRA."""
    if recipe.model.lora is None and recipe.optim.rule in pair_rules():
        yield f"optim={recipe.optim.name}: updates LoRA factors, and there are none; add model.lora.r=16"


def model_source(recipe: Recipe) -> Lines:
    """A model is either loaded or built."""
    model = recipe.model
    if model.path is not None and model.architecture is not None:
        yield f"model.path={model.path}: not together with model.architecture; select it with model={model.path}"
    if model.path is None and model.architecture is None:
        yield "model.path: required; a hub id or a local folder (or give model.architecture)"
    if model.path is not None and is_gguf(model.path) and (line := gguf_fault(model.path)):
        yield f"model.path={model.path}: {line}"
    if model.architecture is not None:
        yield from check_architecture(model.architecture)
        heads, groups = (model.architecture.get(f"num_{kind}_heads") for kind in ("attention", "key_value"))
        if isinstance(heads, int) and isinstance(groups, int) and groups > 0 and heads % groups:
            yield f"model.architecture.num_key_value_heads={groups}: must divide num_attention_heads={heads}"


def thinking(recipe: Recipe) -> Lines:
    """The built-in tokenizer's template has no switch."""
    if recipe.model.path is None and recipe.model.enable_thinking is not None:
        yield "model.enable_thinking: must be null for a model built here, whose chat template has no such switch"


def low_precision(recipe: Recipe) -> Lines:
    """Full fine-tuning keeps float32 master weights."""
    if recipe.model.weights_dtype == "bfloat16" and recipe.model.lora is None:
        yield (
            "model.weights_dtype=bfloat16: only with model.lora.*, whose adapters stay float32; bfloat16 weights lose "
            "updates this small (trainer.bf16=true computes in bfloat16 over float32 weights)"
        )


def freezing(recipe: Recipe) -> Lines:
    """Patterns can be read, and there is something to freeze."""
    for pattern in recipe.model.freeze:
        try:
            re.compile(pattern)
        except re.error as error:
            yield f"model.freeze={pattern}: no regular expression: {error}"
    if recipe.model.freeze and recipe.model.lora:
        yield "model.freeze: has no effect beside model.lora, which trains its adapters alone; remove one of them"


def adapters(recipe: Recipe) -> Lines:
    """Adapters sit somewhere, peft knows their knobs, and a reference model is what training began with."""
    lora = recipe.model.lora
    if lora is None:
        return
    if not lora.target_modules:
        yield "model.lora.target_modules=[]: must name at least one module, for example q_proj"
    if lora.path is not None and lora.options:
        yield "model.lora.options: those of the adapters at model.lora.path hold; remove it"
    yield from check_lora("model.lora", lora)
    if recipe.algorithm != "sft" and lora.dropout:
        yield (
            f"model.lora.dropout={lora.dropout:g}: not with {recipe.algorithm}: a policy would sample and be weighed "
            "with different parts of itself switched off, so that its ratios are noise; set 0"
        )
    beta = recipe.trainer.get("beta", 0.0)
    if recipe.algorithm != "sft" and beta and moves_the_base(lora):
        start = show(lora.options["init_lora_weights"])
        yield (
            f"trainer.beta={beta}: not with model.lora.options.init_lora_weights={start}: TRL's reference is the model "
            "without its adapter, from whose weights this start has taken the factors; set trainer.beta=0"
        )


def data_source(recipe: Recipe) -> Lines:
    """What is generated has no files."""
    data = recipe.data
    if data.path is None and data.name not in GENERATED:
        yield f"data.path: required; a hub id or a local file, unless data is {' or '.join(GENERATED)}"
    if data.path is None and data.test_path is not None:
        yield f"data.test_path={data.test_path}: has no effect on generated problems; add data.path"
    if data.levels == []:
        yield "data.levels=[]: must be null or name at least one level"
    if data.path is not None and data.levels is not None and data.columns.level is None:
        yield f"data.levels={data.levels}: needs data.columns.level, the column that holds a problem's level"


def batch_sizes(recipe: Recipe) -> Lines:
    """What does not divide on one process divides on none."""
    batch = recipe.batch
    per_step = batch.prompts_per_step * (1 if recipe.algorithm == "sft" else batch.samples_per_prompt)
    if batch.micro_batch is not None and per_step % batch.micro_batch:
        divisors = [size for size in range(1, per_step + 1) if per_step % size == 0]
        best = min(divisors, key=lambda size: abs(size - (batch.micro_batch or 1)))
        yield f"batch.micro_batch={batch.micro_batch}: must divide the {per_step} sequences of a step; nearest: {best}"
    if batch.grow and recipe.algorithm == "sft":
        yield "batch.grow=true: only where prompts are sampled (grpo, gmpo); sft prepares its examples beforehand"
    if batch.skip_zero_advantages:
        yield from _zero_advantages(recipe)
    if batch.norm_test_eta != 1 and not (batch.norm_test or batch.grow):
        yield f"batch.norm_test_eta={batch.norm_test_eta:g}: has no effect without batch.norm_test or batch.grow"
    if batch.grow_limit is not None and not batch.grow:
        yield f"batch.grow_limit={batch.grow_limit}: has no effect without batch.grow=true"
    elif batch.grow_limit is not None and batch.grow_limit < 2 * batch.prompts_per_step:
        yield (
            f"batch.grow_limit={batch.grow_limit}: the batch could never double; must be at least twice "
            f"batch.prompts_per_step={batch.prompts_per_step}"
        )


def _zero_advantages(recipe: Recipe) -> Lines:
    """Where a completion without an advantage has a gradient all the same, or decides how much others count."""
    trainer, batch = recipe.trainer, recipe.batch
    against = {
        "algorithm=sft": recipe.algorithm == "sft",
        "trainer.beta": trainer.get("beta", 0.0) > 0,
        "trainer.entropy_coef": bool(trainer.get("entropy_coef")),
        "trainer.use_adaptive_entropy": bool(trainer.get("use_adaptive_entropy")),
        "trainer.top_entropy_quantile": trainer.get("top_entropy_quantile", 1.0) < 1,
        "trainer.loss_type=bnpo": trainer.get("loss_type") == "bnpo",
        "batch.norm_test": batch.norm_test,
        "batch.grow": batch.grow,
    }
    for key in [key for key, given in against.items() if given]:
        yield f"batch.skip_zero_advantages=true: not with {key}, for which completions without an advantage count too"


def imitation(recipe: Recipe) -> Lines:
    """What only makes sense with, or without, rollouts."""
    if recipe.algorithm == "sft":
        if recipe.batch.updates_per_generation != 1:
            yield f"batch.updates_per_generation={recipe.batch.updates_per_generation}: must be 1 for algorithm: sft"
        if recipe.rollout.engine != "transformers":
            yield f"rollout.engine={recipe.rollout.engine}: algorithm sft samples nothing; use transformers"
        if recipe.data.path is not None and recipe.data.columns.solution is None:
            yield "data.columns.solution: required for algorithm: sft; the column with worked solutions"
    if recipe.corruption is not None and (recipe.algorithm != "sft" or recipe.data.name != "arithmetic"):
        yield "corruption: only for algorithm: sft on generated data (data=arithmetic); else add corruption=null"
    if recipe.box_answers and recipe.algorithm != "sft":
        yield "box_answers=true: only for algorithm: sft, which imitates solutions"


def rewards(recipe: Recipe) -> Lines:
    """Each is known and told what it understands, no two bear one name, and together they have a weight."""
    several = isinstance(recipe.reward, list)
    for index, reward in enumerate(recipe.rewards):
        if "???" in (reward.name, *reward.options.values()):
            continue
        yield from check_reward(reward, f"reward.{index}" if several else "reward")
    names = [reward.name for reward in recipe.rewards]
    if not names:
        yield "reward=[]: must name at least one"
    if twice := next((name for name in names if names.count(name) > 1), None):
        yield f"reward={names}: {twice} stands there twice"
    if names and not any(reward.weight for reward in recipe.rewards):
        yield "reward: every weight is 0, so that nothing would be learnt"
    if "multi_objective_aggregation" in recipe.trainer and len(names) < 2:
        given = recipe.trainer["multi_objective_aggregation"]
        yield f"trainer.multi_objective_aggregation={given}: has no effect with one reward"
    if recipe.data.columns.answer is None and (wanting := [name for name in names if name in _NEEDS_GOLD]):
        yield f"data.columns.answer: required for reward={wanting[0]}; the column with the golds"


_NEEDS_GOLD = ("math", "last_number", "choice")


def evaluation(recipe: Recipe) -> Lines:
    """pass@k needs k samples, and data sets are known by name."""
    section = recipe.evaluation
    if not section.k or min(section.k) < 1 or max(section.k) > section.samples:
        yield f"evaluation.k={section.k}: must be numbers from 1 to evaluation.samples={section.samples}"
    known = [name for name in list_group("data") if name != "local"]
    for name in section.data:
        if name not in known:
            yield f"evaluation.data={name}: unknown; {nearest(name, known)}"


def optimizer(recipe: HasOptim) -> Lines:
    """Ranges that the schema's types cannot state."""
    optim = recipe.optim
    if not all(0 <= beta < 1 for beta in optim.betas):
        yield f"optim.betas={list(optim.betas)}: must be two numbers >= 0 and < 1"
    steps = [("optim", optim.promotion_steps), *((key, each.promotion_steps) for key, each in _settings(recipe))]
    for key, value in steps:
        if isinstance(value, float) and not 0 <= value <= optim.ns_steps:
            yield f"{key}.promotion_steps={value:g}: must be auto or a number from 0 to optim.ns_steps={optim.ns_steps}"
    for index, each in enumerate(optim.overrides):
        try:
            re.compile(each.pattern)
        except re.error as error:
            yield f"optim.overrides.{index}.pattern={each.pattern}: no regular expression: {error}"


def rule_names(recipe: HasOptim) -> Lines:
    """Update rules are known by name, and no preset is taken for one.

    Raises:
        ConfigError: one of the recipe's plugins cannot be used.
    """
    optim = recipe.optim
    import_plugins(optim.plugins)
    rules, presets = known_rules(), list_group("optim")
    given: list[tuple[str, str | None]] = [("optim.rule", optim.rule)]
    given += [(f"{key}.rule", each.rule) for key, each in _settings(recipe)]
    given += [("optim.lr_from.rule", optim.lr_from.rule)] if optim.lr_from is not None else []
    for key, rule in given:
        if rule in presets and rule not in rules:
            yield f"{key}={rule}: a preset of recipes/optim, and no rule; {_instead(key, rule)}"
        elif rule is not None and rule not in rules:
            yield f"{key}={show(rule)}: unknown; {nearest(rule, rules)}"
    named = preset(optim.name)["rule"] if optim.name in presets else optim.name
    if optim.rule not in rules:
        return
    if named not in rules:
        yield f"optim.name={show(optim.name)}: unknown; {nearest(optim.name, list_optimizers())}"
    elif named != optim.rule:
        yield f"optim.name={optim.name}: the rule is {optim.rule}; choose by optim={optim.name} or optim.rule={named}"


def _instead(key: str, name: str) -> str:
    """What to write for a preset that was taken for a rule."""
    if key == "optim.rule":
        return f"choose it by optim={name}"
    values = preset(name)
    of_role = ", ".join(f"{field}: {show(values[field])}" for field in RoleSettings.model_fields if field in values)
    return f"write what it sets for a role: {key.removesuffix('.rule')}={{{of_role}}}"


def _settings(recipe: HasOptim) -> list[tuple[str, RoleSettings]]:
    """Dotted key and settings of every role and override that has any."""
    roles = recipe.optim.roles if isinstance(recipe.optim.roles, dict) else {}
    named = [(f"optim.roles.{role}", each) for role, each in roles.items()]
    return [*named, *((f"optim.overrides.{index}", each) for index, each in enumerate(recipe.optim.overrides))]


def option_names(recipe: HasOptim) -> Lines:
    """A mistyped option is said before data are made; whether the rule at hand has it, when the optimizer is built."""
    optim = recipe.optim
    given = [("optim", optim.options), *((key, each.options) for key, each in _settings(recipe))]
    for key, options in given:
        for name in options:
            if name not in known_options():
                words = nearest(name, [*known_options(), *Optim.model_fields])
                yield f"{key}.options.{name}: no rule has this option; {words}"


def upload(recipe: HasOptim) -> Lines:
    """The hub's names have two parts."""
    if recipe.push is not None and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", recipe.push, re.ASCII):
        yield f"push={recipe.push}: must be OWNER/NAME, with letters, digits, and . _ -"


def devices(recipe: Recipe) -> Lines:
    """Only a GPU can serve vLLM, which reads the model by itself."""
    if recipe.rollout.engine != "vllm" or recipe.algorithm == "sft":
        return
    if recipe.device == "cpu":
        yield "rollout.engine=vllm: needs a GPU; use rollout.engine=transformers with device=cpu"
    elif recipe.model.path is None and recipe.trainer.get("vllm_mode", "colocate") == "colocate":
        yield (
            "rollout.engine=vllm: a colocated engine reads the model from a folder or the hub, and this one is built "
            "here; set model.path, or trainer.vllm_mode=server with a server that has the same model"
        )


_CUTTING = frozenset(
    {"allowed_token_ids", "bad_words", "frequency_penalty", "logit_bias", "min_p", "min_tokens", "presence_penalty"}
    | {"repetition_penalty", "structured_outputs", "top_k", "top_p"}
)
"""What makes vLLM draw tokens from another distribution than the model's at the recipe's temperature."""


def importance_ratio(recipe: Recipe) -> Lines:
    """VLLM samples with arithmetic of its own, for which the loss corrects by the ratio of full distributions."""
    if recipe.rollout.engine != "vllm":
        return
    neutral: dict[str, float] = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    for knob, value in neutral.items():
        given = recipe.trainer.get(knob)
        if given not in (None, value):
            yield (
                f"trainer.{knob}={show(given)}: with rollout.engine=vllm completions come from a cut distribution and "
                f"the loss has the whole one, which biases the ratio; set {value:g}"
            )
    for knob in sorted(_CUTTING & set(recipe.trainer.get("generation_kwargs") or {})):
        yield (
            f"trainer.generation_kwargs.{knob}: with rollout.engine=vllm completions come from a distribution that it "
            "changes, and the loss has the model's own, which biases the ratio; leave it out"
        )
    if recipe.trainer.get("vllm_structured_outputs_regex"):
        yield (
            "trainer.vllm_structured_outputs_regex: completions come from a cut distribution and the loss has the "
            "whole one, which biases the ratio; leave it out"
        )
    if recipe.trainer.get("vllm_importance_sampling_correction") is False:
        yield (
            "trainer.vllm_importance_sampling_correction=false: vLLM's probabilities differ from those that are "
            "trained, and nothing would correct for it; leave it true"
        )


def whole_gradients(recipe: Recipe) -> Lines:
    """The norm test compares gradients of micro-batches, of which FSDP2 leaves parts."""
    for key in ("norm_test", "grow"):
        if recipe.sharding == "fsdp2" and getattr(recipe.batch, key):
            yield f"batch.{key}=true: needs whole gradients on every process; set sharding=ddp, or batch.{key}=false"


def whole_matrices(recipe: HasOptim) -> Lines:
    """Penalties are functions of a matrix, of which FSDP2 leaves a part."""
    if recipe.sharding == "fsdp2" and recipe.optim.penalties:
        yield "optim.penalties: need whole matrices on every process; set sharding=ddp, or leave them out"


RULES = (
    missing_values,
    names,
    trainer_knobs,
    importance_ratio,
    freezing,
    whole_gradients,
    whole_matrices,
    installed,
    factor_rules,
    model_source,
    thinking,
    low_precision,
    adapters,
    data_source,
    batch_sizes,
    imitation,
    rewards,
    tool_use,
    evaluation,
    optimizer,
    rule_names,
    option_names,
    upload,
    devices,
)
