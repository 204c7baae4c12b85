"""Evaluations of one policy on its data sets: run, written down, shown. Shared by training and `rlspec.evaluate`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import PreTrainedTokenizerBase

from rlspec.checkpoint import write_json_atomically
from rlspec.config.schema import Evaluation
from rlspec.rlvr.data import Problem
from rlspec.rlvr.evaluation import Metrics, PromptStyle, Protocol, evaluate_policy, summarize, write_outcomes
from rlspec.rlvr.generation import Policy
from rlspec.rlvr.grading.pool import GraderPool


def build_protocol(settings: Evaluation, *, max_new_tokens: int, bf16: bool) -> Protocol:
    """The protocol of a recipe's section `evaluation`; `max_new_tokens` stands in where it names none."""
    return Protocol(
        samples=settings.samples,
        k=tuple(settings.k),
        max_new_tokens=settings.max_new_tokens or max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        batch_size=settings.batch_size,
        seed=settings.seed,
        bf16=bf16,
    )


@dataclass(frozen=True)
class Evaluator:
    """Asks a policy the problems of every data set and writes what it answered below `folder`."""

    datasets: Mapping[str, Sequence[Problem]]
    style: PromptStyle
    protocol: Protocol
    pool: GraderPool
    folder: Path

    def __call__(self, model: Policy, tokenizer: PreTrainedTokenizerBase, label: str) -> dict[str, Metrics]:
        """Metrics by data set; `<label>-<data set>.jsonl` holds the completions, the `.json` beside it the metrics.

        With several processes each answers its share of the problems, and all return the whole.
        """
        results = {}
        state = PartialState()
        for name, problems in self.datasets.items():
            started = time.monotonic()
            share = problems[state.process_index :: state.num_processes]
            outcomes = evaluate_policy(
                model, tokenizer, share, style=self.style, protocol=self.protocol, pool=self.pool
            )
            if state.num_processes > 1:
                outcomes = gather_object(outcomes)
            results[name] = summarize(outcomes, self.protocol.k)
            if state.is_main_process:
                write_outcomes(self.folder / f"{label}-{name}.jsonl", outcomes)
                content = {**results[name].to_json(), "seconds": round(time.monotonic() - started, 1)}
                write_json_atomically(self.folder / f"{label}-{name}.json", content)
        return results

    def stored(self, label: str) -> dict[str, Any]:
        """The metrics of an earlier call, as JSON by data set; those that are not there are left out."""
        paths = {name: self.folder / f"{label}-{name}.json" for name in self.datasets}
        return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}


def format_metrics(name: str, metrics: Metrics) -> list[str]:
    """Lines for the terminal: accuracies with 95% intervals, then how the answers look."""
    accuracies = [
        f"greedy pass@1 {_rate(metrics.pass_at_1, metrics.ci95)}",
        f"sampled pass@1 {_rate(metrics.sampled_pass_at_1, metrics.sampled_ci95)}",
    ]
    accuracies += [
        f"pass@{k} {_rate(value, metrics.pass_at_k_ci95[k])}" for k, value in metrics.pass_at_k.items() if k > 1
    ]
    accuracies += [
        f"maj@{k} {_rate(value, metrics.maj_at_k_ci95[k])}" for k, value in metrics.maj_at_k.items() if k > 1
    ]
    shape = (
        f"truncated {metrics.truncation_rate:.1%}, boxed {metrics.box_rate:.1%}, "
        f"mean length {metrics.mean_length:.1f} tokens, not judged {metrics.excluded}"
    )
    first, *others = accuracies
    return [f"{name}, {metrics.n} problems: {first}", *(f"    {text}" for text in [*others, shape])]


def _rate(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]"
