"""Evaluations of one policy on its data sets: run, written down, shown. Shared by training and `rlspec.evaluate`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from rlspec.checkpoint import write_json_atomically
from rlspec.config.rlvr_schema import Evaluation
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.evaluation.accuracy import (
    AccuracyMetrics,
    SamplingProtocol,
    evaluate_policy,
    summarize,
    write_outcomes,
)
from rlspec.rlvr.sampling.generation import Policy, Sampler, generate_tokens
from rlspec.rlvr.sampling.prompts import PromptStyle
from rlspec.rlvr.training.arguments import completion_length, uses_bf16
from rlspec.rlvr.verifiers.verifier import Verifier
from rlspec.runtime.outcome import Scores, keep_best
from rlspec.runtime.sharding import unsharded
from rlspec.runtime.starting import Run


def build_protocol(settings: Evaluation, trainer: Mapping[str, Any], device: str) -> SamplingProtocol:
    """The protocol of a recipe's section `evaluation`; precision and, unless it names one, length are training's."""
    return SamplingProtocol(
        samples=settings.samples,
        k=tuple(settings.k),
        max_new_tokens=settings.max_new_tokens or completion_length(trainer, settings),
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        batch_size=settings.batch_size,
        seed=settings.seed,
        bf16=uses_bf16(trainer, device),
    )


@dataclass(frozen=True)
class ProblemEvaluator:
    """Asks a policy the problems of every data set and writes what it answered below `folder`."""

    datasets: Mapping[str, Sequence[Problem]]
    style: PromptStyle
    protocol: SamplingProtocol
    verifier: Verifier  # which says what is right
    folder: Path
    others: Sequence[Verifier] = ()  # whose scores are measured beside
    sampler: Sampler = generate_tokens

    def __call__(self, model: Policy, tokenizer: PreTrainedTokenizerBase, label: str) -> dict[str, AccuracyMetrics]:
        """Metrics by data set; `<label>-<data set>.jsonl` holds the completions, the `.json` beside it the metrics.

        With several processes each answers its share of the problems, and all return the whole.
        """
        results = {}
        state = PartialState()
        for name, problems in self.datasets.items():
            started = time.monotonic()
            share = problems[state.process_index :: state.num_processes]
            outcomes = evaluate_policy(
                model,
                tokenizer,
                share,
                style=self.style,
                protocol=self.protocol,
                verifier=self.verifier,
                others=self.others,
                sampler=self.sampler,
            )
            if state.num_processes > 1:
                outcomes = gather_object(outcomes)
            results[name] = summarize(outcomes, self.protocol.k, self.verifier)
            if state.is_main_process:
                write_outcomes(self.folder / f"{label}-{name}.jsonl", outcomes)
                took = {"seconds": round(time.monotonic() - started, 1), "protocol": asdict(self.protocol)}
                content = results[name].to_json() | took
                write_json_atomically(self.folder / f"{label}-{name}.json", content)
        return results

    def stored(self, label: str) -> dict[str, Any]:
        """The metrics of an earlier call, as JSON by data set; those that are not there are left out."""
        paths = {name: self.folder / f"{label}-{name}.json" for name in self.datasets}
        found = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}
        return {name: {key: content[key] for key in content if key != "protocol"} for name, content in found.items()}


@dataclass(frozen=True)
class HeldOutEvaluations:
    """The evaluations of one run, shown and recorded; the best weights of those during training are kept.

    Every process takes part in each.
    """

    settings: Evaluation
    evaluator: ProblemEvaluator
    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    run: Run
    write_best: Callable[[Path], None] | None  # into a folder; None: they are not kept

    def before(self) -> Scores | None:
        """Measure the policy that the run starts from; of a resumed run what was measured then."""
        if self.run.point is not None:
            return self.evaluator.stored("before") or None
        return self._measure("before", 0) if self.settings.before else None

    def during(self, step: int) -> None:
        """Measure between two steps."""
        self._measure(f"step-{step}", step)

    def after(self, step: int) -> Scores | None:
        """Measure the trained policy."""
        return self._measure("after", step) if self.settings.after else None

    def _measure(self, label: str, step: int) -> Scores:
        with unsharded(self.policy):
            results = self.evaluator(self.policy, self.tokenizer, label)
            if self.run.process.is_main_process:
                self._record(results, label.replace("-", " "), step)
                if step > 0 and self.settings.every and self.write_best is not None:
                    score = next(iter(results.values())).sampled_pass_at_1
                    keep_best(self.run, step, ("sampled_pass_at_1", score), self.write_best)
        return {name: metrics.to_json() for name, metrics in results.items()}

    def _record(self, results: Mapping[str, AccuracyMetrics], label: str, step: int) -> None:
        row: dict[str, Any] = {"step": step}
        for name, metrics in results.items():
            row[f"eval/{name}/pass_at_1"] = metrics.pass_at_1
            row[f"eval/{name}/sampled_pass_at_1"] = metrics.sampled_pass_at_1
            row |= {f"eval/{name}/pass_at_k.{k}": rate for k, rate in metrics.pass_at_k.items()}
            row |= {f"eval/{name}/maj_at_k.{k}": rate for k, rate in metrics.own.get("maj_at_k", {}).items()}
            row |= {f"eval/{name}/rewards/{reward}": score for reward, score in metrics.rewards.items()}
            for text in format_metrics(f"{label}: {name}", metrics, self.evaluator.verifier):
                self.run.display.line(text)
        self.run.directory.append_metrics(row)


def format_metrics(name: str, metrics: AccuracyMetrics, verifier: Verifier) -> list[str]:
    """Lines for the terminal: accuracies with 95% intervals, then how the answers look."""
    accuracies = [
        f"greedy pass@1 {_rate(metrics.pass_at_1, metrics.ci95)}",
        f"sampled pass@1 {_rate(metrics.sampled_pass_at_1, metrics.sampled_ci95)}",
    ]
    accuracies += [
        f"pass@{k} {_rate(value, metrics.pass_at_k_ci95[k])}" for k, value in metrics.pass_at_k.items() if k > 1
    ]
    rates, phrases = verifier.describe(metrics.own)
    if metrics.rewards:
        each = ", ".join(f"{reward} {score:.3f}" for reward, score in metrics.rewards.items())
        rates = [*rates, f"mean rewards: {each}"]
    elif metrics.mean_score is not None:
        rates = [*rates, f"mean score {metrics.mean_score:.3f}"]
    shape = [
        f"truncated {metrics.truncation_rate:.1%}",
        *phrases,
        f"mean length {metrics.mean_length:.1f} tokens",
        f"not judged {metrics.excluded}",
    ]
    first, *others = [*accuracies, *rates]
    return [f"{name}, {metrics.n} problems: {first}", *(f"    {text}" for text in [*others, ", ".join(shape)])]


def _rate(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"
