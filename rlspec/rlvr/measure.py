"""A stored policy measured outside training, by the code that measures it inside."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from rlspec.config.adapters import ADAPTERS
from rlspec.config.rlvr_schema import Model, Recipe
from rlspec.display import Display
from rlspec.rlvr.data.problems import read_problems
from rlspec.rlvr.evaluation.evaluator import ProblemEvaluator, build_protocol, format_metrics
from rlspec.rlvr.models.loading import build_model
from rlspec.rlvr.sampling.generation import Policy
from rlspec.rlvr.session import ProblemSets, evaluation_sets, load_policy, policy_tokenizer, prompt_style
from rlspec.rlvr.tools.toolbox import build_toolbox
from rlspec.runtime.devices import choose_device
from rlspec.runtime.quiet import quiet_libraries


def measure(recipe: Recipe, *, folder: str, out: Path) -> int:
    """Evaluate the weights in `folder` (or a hub id) under a recipe's protocol and show the metrics."""
    quiet_libraries()
    display = Display(recipe.report.display)
    display.relay_messages_of("rlspec")
    display.line(f"loading {folder}")
    device = choose_device(recipe.device)
    adapters = (Path(folder) / ADAPTERS).is_file()
    toolbox = build_toolbox(recipe)
    tokenizer = policy_tokenizer(recipe.model, toolbox, None if adapters else folder)
    policy = load_trained(recipe.model, folder, tokenizer, adapters=adapters).to(device)
    settings = recipe.evaluation
    held_out = [] if settings.data else read_problems(recipe.data, whole_rows=recipe.whole_rows)[1]
    problems = ProblemSets([], evaluation_sets(settings.data, settings.problems, recipe, held_out))
    protocol = build_protocol(settings, recipe.trainer, device)
    judges = problems.verifiers(recipe.rewards, recipe.grader, thinking=recipe.model.enable_thinking)
    with closing(judges) as verifiers:
        style = prompt_style(recipe.model, toolbox)
        main, *others = verifiers.members
        evaluator = ProblemEvaluator(problems.measured, style, protocol, main, out, others)
        for earlier in (path for name in problems.measured if (path := out / f"evaluate-{name}.json").is_file()):
            display.line(f"{earlier}: an earlier measurement, which this one replaces; out=DIR keeps both")
        results = evaluator(policy, tokenizer, "evaluate")
    for name, metrics in results.items():
        for line in format_metrics(name, metrics, verifiers.main):
            display.line(line)
        display.line("    reasons: " + ", ".join(f"{reason} {count}" for reason, count in metrics.reasons.items()))
    display.line(f"metrics and answers: {out}")
    return 0


def load_trained(model: Model, folder: str, tokenizer: PreTrainedTokenizerBase, *, adapters: bool) -> Policy:
    """A checkpoint's policy; LoRA adapters are put on the base that the recipe names."""
    if adapters:
        base = load_policy(model.model_copy(update={"lora": None}), tokenizer, seed=0)
        return PeftModel.from_pretrained(base, folder)
    return build_model(path=folder, tokenizer=tokenizer, weights_dtype=model.weights_dtype)
