"""Measuring a policy on problems with known answers: the same code inside training and in `rlspec.evaluate`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlspec.intervals import Interval, mean_interval, pass_at_k, wilson_interval
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.sampling.conversation import converse
from rlspec.rlvr.sampling.generation import Completion, Policy, Sampler, Sampling, generate, generate_tokens
from rlspec.rlvr.sampling.prompts import PromptStyle
from rlspec.rlvr.verifiers.verifier import Attempt, Judgement, Summary, Verifier


@dataclass(frozen=True)
class SamplingProtocol:
    """How often each problem is asked and how answers are drawn."""

    samples: int = 8
    k: tuple[int, ...] = (1, 8)
    max_new_tokens: int = 512
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    batch_size: int = 64
    seed: int = 1234
    bf16: bool = False  # autocast, as in training


@dataclass(frozen=True)
class GradedAnswer:
    """A completion, what the first reward says of it, and whether that is right (None: it could not judge)."""

    completion: Completion
    judgement: Judgement
    correct: bool | None
    scores: Mapping[str, float | None] = field(default_factory=dict)  # by reward, where there are several


@dataclass(frozen=True)
class ProblemAnswers:
    """All answers to one problem."""

    problem: Problem
    greedy: GradedAnswer
    samples: list[GradedAnswer]

    def scored(self) -> list[bool]:
        """Whether the samples are right, without those that the verifier could not judge."""
        return [answer.correct for answer in self.samples if answer.correct is not None]


@dataclass(frozen=True)
class AccuracyMetrics:
    """Rates in [0, 1] over one data set, with 95% intervals; lengths in tokens."""

    n: int
    correct: int
    pass_at_1: float
    ci95: Interval
    sampled_pass_at_1: float
    sampled_ci95: Interval
    pass_at_k: dict[int, float] = field(default_factory=dict)
    pass_at_k_ci95: dict[int, Interval] = field(default_factory=dict)
    truncation_rate: float = 0.0
    mean_length: float = 0.0
    greedy_mean_length: float = 0.0
    excluded: int = 0  # answers that the verifier could not judge
    reasons: dict[str, int] = field(default_factory=dict)
    mean_score: float | None = None  # of the samples, where scores are more than 0 and 1
    rewards: dict[str, float] = field(default_factory=dict)  # mean scores of the samples, of several rewards
    own: Summary = field(default_factory=dict)  # of the verifier

    def to_json(self) -> dict[str, Any]:
        """Plain types, rounded to 4 digits, keys as strings; the verifier's own stand beside the others."""
        values = asdict(self)
        values |= values.pop("own")
        for name, nothing in (("mean_score", None), ("rewards", {})):
            if values[name] == nothing:
                del values[name]
        return json.loads(json.dumps(values), parse_float=lambda text: round(float(text), 4))


def evaluate_policy(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    *,
    style: PromptStyle,
    protocol: SamplingProtocol,
    verifier: Verifier,
    others: Sequence[Verifier] = (),
    sampler: Sampler = generate_tokens,
) -> list[ProblemAnswers]:
    """Answer every problem once greedily and `protocol.samples` times at random, and judge the answers.

    `verifier`, the recipe's first reward, says what is right; of `others` the scores are kept.
    """
    greedy_sampling = Sampling(protocol.max_new_tokens, bf16=protocol.bf16)
    random_sampling = replace(
        greedy_sampling, temperature=protocol.temperature, top_p=protocol.top_p, top_k=protocol.top_k
    )
    ask = partial(_ask, sampler, model, tokenizer, style, protocol)
    repeated = [problem for problem in problems for _ in range(protocol.samples)]
    attempts, completions = [], []
    for asked, sampling in ((problems, greedy_sampling), (repeated, random_sampling)):
        for completion, attempt in ask(asked, sampling):
            completions.append(completion)
            attempts.append(attempt)
    judged = {member.name: member.judge(attempts) for member in (verifier, *others)}
    answers = []
    for index, (completion, each) in enumerate(zip(completions, judged[verifier.name], strict=True)):
        scores = {name: judgements[index].score for name, judgements in judged.items()} if others else {}
        answers.append(GradedAnswer(completion, each, verifier.right(each), scores))
    outcomes = []
    for index, problem in enumerate(problems):
        first = len(problems) + index * protocol.samples
        outcomes.append(ProblemAnswers(problem, answers[index], answers[first : first + protocol.samples]))
    return outcomes


def _ask(
    sampler: Sampler,
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    style: PromptStyle,
    protocol: SamplingProtocol,
    problems: Sequence[Problem],
    sampling: Sampling,
) -> list[tuple[Completion, Attempt]]:
    """An answer to each problem, and what a verifier gets to see of it."""
    size, seed = protocol.batch_size, protocol.seed
    if style.toolbox:
        return converse(model, tokenizer, problems, style, sampling, batch_size=size, seed=seed)
    texts = [style.text(problem, tokenizer) for problem in problems]
    completions = generate(model, tokenizer, texts, sampling, batch_size=size, seed=seed, sampler=sampler)
    return [
        (completion, Attempt(problem, completion.text, completion.tokens, style.messages(problem)))
        for problem, completion in zip(problems, completions, strict=True)
    ]


def summarize(outcomes: Sequence[ProblemAnswers], k: Sequence[int], verifier: Verifier) -> AccuracyMetrics:
    """Rates and intervals; values of k above the number of samples are left out."""
    greedy = [o.greedy.correct for o in outcomes if o.greedy.correct is not None]
    correct = sum(greedy)
    sampled = [sum(scored) / len(scored) for o in outcomes if (scored := o.scored())]
    at_k: dict[int, list[float]] = {}
    for size in sorted(set(k)):
        counted = [(len(scored), sum(scored)) for o in outcomes if len(scored := o.scored()) >= size]
        if counted:
            at_k[size] = [pass_at_k(samples, right, size) for samples, right in counted]
    samples = [answer for o in outcomes for answer in o.samples]
    everything = samples + [o.greedy for o in outcomes]
    scores = [answer.judgement.score for answer in samples if answer.judgement.score is not None]
    return AccuracyMetrics(
        n=len(greedy),
        correct=correct,
        pass_at_1=_mean(greedy),
        ci95=wilson_interval(correct, len(greedy)),
        sampled_pass_at_1=_mean(sampled),
        sampled_ci95=mean_interval(sampled),
        pass_at_k={size: _mean(values) for size, values in at_k.items()},
        pass_at_k_ci95={size: mean_interval(values) for size, values in at_k.items()},
        truncation_rate=_mean([a.completion.truncated for a in samples]),
        mean_length=_mean([a.completion.length for a in samples]),
        greedy_mean_length=_mean([o.greedy.completion.length for o in outcomes]),
        excluded=sum(a.correct is None for a in everything),
        reasons=dict(Counter(a.judgement.reason for a in everything).most_common()),
        mean_score=None if set(scores) <= {0.0, 1.0} else _mean(scores),
        rewards=_mean_scores([answer.scores for answer in samples]),
        own=verifier.summarize([[answer.judgement for answer in o.samples] for o in outcomes], k),
    )


def _mean_scores(scores: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """By reward, over the answers that it judged; a reward that judged none is left out."""
    judged = {name: [each[name] for each in scores if each[name] is not None] for name in (scores[0] if scores else ())}
    return {name: _mean([float(value or 0) for value in values]) for name, values in judged.items() if values}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def write_outcomes(path: Path, outcomes: Sequence[ProblemAnswers]) -> None:
    """One JSON line per completion: problem, gold, mode (greedy or sample number), text, verdict, reason code."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for outcome in outcomes:
            for mode, answer in [("greedy", outcome.greedy), *enumerate(outcome.samples)]:
                file.write(json.dumps(_row(outcome.problem, mode, answer), ensure_ascii=False) + "\n")


def _row(problem: Problem, mode: object, answer: GradedAnswer) -> dict[str, Any]:
    turns = {"messages": list(answer.completion.messages)} if answer.completion.messages else {}
    return {
        "id": problem.id,
        "problem": problem.problem,
        "gold": problem.answer,
        "mode": mode,
        "completion": answer.completion.text,
        "extracted": answer.judgement.extracted,
        "score": answer.judgement.score,
        "correct": answer.correct,
        "reason": answer.judgement.reason,
        "length": answer.completion.length,
        "truncated": answer.completion.truncated,
        **({"scores": dict(answer.scores)} if answer.scores else {}),
        **turns,
    }
