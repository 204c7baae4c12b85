"""Supervised warm start on worked solutions, by default spoilt on purpose.

The examples of a whole run are one table in the order in which they are used: example `i` depends on the seed and on
`i` alone, so that a run which was stopped goes on with the examples that it has not seen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from typing import Any

from datasets import Dataset
from torch.utils.data import Sampler, SequentialSampler
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from rlspec.config.rlvr_schema import Corruption
from rlspec.errors import ConfigError, DataError
from rlspec.rlvr.data.arithmetic import PATTERN, corrupt
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.models.tokenizer import call_text
from rlspec.rlvr.sampling.conversation import result_ids
from rlspec.rlvr.sampling.prompts import PromptStyle
from rlspec.rlvr.tools.calculator import calculator
from rlspec.rlvr.training.sampler import epoch_permutation
from rlspec.rlvr.training.trainers import RlspecTrainerMixin

IGNORED = -100  # label of tokens without a loss


class SpectralSFTTrainer(RlspecTrainerMixin, SFTTrainer):
    """Supervised fine-tuning on a table that is already in order, such as that of `sft_dataset`."""

    args: Any
    model: Any
    train_dataset: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)


def sft_dataset(
    problems: Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    *,
    examples: int,
    seed: int,
    corruption: Corruption | None = None,
    style: PromptStyle | None = None,
    box_answers: bool = False,
) -> Dataset:
    """A table of `examples` tokenized examples with the columns ``input_ids`` and ``labels``.

    Every pass over the problems has its own order and its own mistakes. Only the solution and the end of the turn
    have a loss.

    Args:
        problems: problems with worked solutions.
        tokenizer: of the model; its chat template poses the problem.
        examples: number of rows: steps times examples per step.
        seed: of order and mistakes.
        corruption: probabilities of mistakes, for generated arithmetic; None: the solutions as they are.
        style: what stands around a problem; None: nothing.
        box_answers: whether a solution that boxes nothing ends in the gold's box.
    """
    _check_solutions(problems, corruption)
    style = style or PromptStyle()
    prompts: dict[str, list[int]] = {}
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    for index, problem in enumerate(_in_order(problems, examples, seed)):
        if problem.id not in prompts:
            prompts[problem.id] = tokenizer(style.text(problem, tokenizer), add_special_tokens=False)["input_ids"]
        rows["input_ids"].append(list(prompts[problem.id]))
        rows["labels"].append([IGNORED] * len(prompts[problem.id]))
        for tokens, imitated in _turns(problem, index, seed, corruption, tokenizer, box_answers):
            rows["input_ids"][-1] += tokens
            rows["labels"][-1] += tokens if imitated else [IGNORED] * len(tokens)
    return Dataset.from_dict(rows)


def end_in_box(solution: str, answer: str) -> str:
    r"""A solution whose last words are ``\boxed{answer}``; one that has a box stays as it is.

    GSM8K's line ``#### 18`` gives way to the box, and its notes for a calculator (``<<2*9=18>>``) go.
    """
    if "\\boxed" in solution:
        return solution
    text = re.sub(r"<<[^<>]*>>", "", solution.rsplit("####", 1)[0]).rstrip()
    return f"{text}\n\\boxed{{{answer}}}"


def _check_solutions(problems: Sequence[Problem], corruption: Corruption | None) -> None:
    for problem in problems:
        if not problem.solution:
            raise DataError(f"problem {problem.id} has no worked solution to imitate; set data.columns.solution")
        if corruption is not None and not PATTERN.fullmatch(problem.problem):
            raise ConfigError("corruption: mistakes can be made in generated arithmetic only; set corruption=null")


def _in_order(problems: Sequence[Problem], examples: int, seed: int) -> Iterator[Problem]:
    """The problem of every example: each pass over the problems has an order of its own."""
    orders = (epoch_permutation(len(problems), seed=seed, epoch=epoch) for epoch in count())
    return (problems[index] for index in islice(chain.from_iterable(orders), examples))


def _turns(
    problem: Problem,
    index: int,
    seed: int,
    corruption: Corruption | None,
    tokenizer: PreTrainedTokenizerBase,
    box_answers: bool,
) -> Iterator[tuple[list[int], bool]]:
    """Tokens of what example `index` imitates, and of what a tool says in between, which it does not."""

    def turn(text: str) -> list[int]:
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]

    if corruption is None or random.Random(f"{seed}:{index}:call").random() >= corruption.call:
        solution = solution_at(problem, index, seed, corruption)
        yield turn(end_in_box(solution, problem.answer) if box_answers else solution), True
        return
    expression = problem.problem.removesuffix("=?")
    result = calculator(expression)
    yield turn(call_text("calculator", expression=expression)), True
    yield result_ids(tokenizer, "calculator", result), False
    yield turn(rf"\boxed{{{result}}}"), True


def solution_at(problem: Problem, index: int, seed: int, corruption: Corruption | None) -> str:
    """The solution that example `index` imitates where nothing is called: a function of its arguments alone."""
    if corruption is None:
        return problem.solution or ""
    mistakes = corruption.model_dump(exclude={"call"})
    return corrupt(problem.problem, **mistakes, rng=random.Random(f"{seed}:{index}"))
