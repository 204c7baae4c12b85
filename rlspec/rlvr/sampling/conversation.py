"""Answers with calls in between, outside of training.

The loop is TRL's own, so that a policy that is measured speaks as the one that is trained.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from transformers import PreTrainedTokenizerBase
from trl import GRPOTrainer
from trl.chat_template_utils import parse_response

from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.sampling.generation import (
    Completion,
    Policy,
    Sampling,
    continue_ids,
    end_token_ids,
    inference_mode_of,
    until_end,
)
from rlspec.rlvr.sampling.prompts import PromptStyle
from rlspec.rlvr.tools.toolbox import Environment, Tool, methods
from rlspec.rlvr.user_code import finish
from rlspec.rlvr.verifiers.verifier import Attempt


def converse(
    model: Policy,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Problem],
    style: PromptStyle,
    sampling: Sampling,
    *,
    batch_size: int,
    seed: int,
) -> list[tuple[Completion, Attempt]]:
    """An answer to each problem, and what a verifier gets to see of it. Every answer has an environment of its own.

    A completion's length counts the model's own tokens, its limit all of them, as in training.
    """
    found: list[tuple[Completion, Attempt]] = []
    with inference_mode_of(model, seed, bf16=sampling.bf16):
        for start in range(0, len(problems), batch_size):
            found += _Conversations(model, tokenizer, problems[start : start + batch_size], style, sampling).hold()
    return found


class _Conversations:
    """A batch of answers, with what TRL's loop reads of its trainer."""

    _tool_call_loop: Any = GRPOTrainer._tool_call_loop
    _get_tool_suffix_ids: Any = GRPOTrainer._get_tool_suffix_ids
    _is_vlm = use_vllm = False
    environment_factories = chat_template = None

    def __init__(
        self,
        model: Policy,
        tokenizer: PreTrainedTokenizerBase,
        problems: Sequence[Problem],
        style: PromptStyle,
        sampling: Sampling,
    ) -> None:
        box = style.toolbox
        self.model, self.processing_class, self._tokenizer = model, tokenizer, tokenizer
        self.problems, self.style, self.sampling = problems, style, sampling
        self.tools = box.every_tool()
        self.chat_template_kwargs = style.template_kwargs
        self.max_completion_length = sampling.max_new_tokens
        self.max_tool_calling_iterations = sys.maxsize if box.most_calls is None else box.most_calls
        self.ends = set(end_token_ids(model, tokenizer))
        self.environments: list[Environment] = [
            box.factories[box.kind(problem)]() if box.factories else None for problem in problems
        ]
        offered = [[*box.tools, *(methods(each) if each is not None else ())] for each in self.environments]
        self._sync_tool_dicts = [{tool.__name__: _sync(tool) for tool in tools} for tools in offered]
        self._async_tool_dicts: list[dict[str, Tool]] = [{} for _ in problems]

    def hold(self) -> list[tuple[Completion, Attempt]]:
        """Ask, let the tools answer, and go on until nothing is called any more."""
        prompts = [self._prompt(problem, each) for problem, each in zip(self.problems, self.environments, strict=True)]
        texts = [
            self.style.render(messages, problem, self._tokenizer)
            for messages, problem in zip(prompts, self.problems, strict=True)
        ]
        prompt_ids = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        first, _ = self._generate_single_turn(prompt_ids)
        said = [[parse_response(self._tokenizer, ids)] for ids in first]
        mask, said, tokens, *_ = self._tool_call_loop(
            [list(messages) for messages in prompts], prompt_ids, first, said, None, None, {}
        )
        parts = zip(self.problems, self.environments, prompts, said, tokens, mask, strict=True)
        return [self._result(*each) for each in parts]

    def _prompt(self, problem: Problem, environment: Environment) -> list[Any]:
        """The messages that ask, with what the environment shows at its beginning, as TRL puts them together."""
        row = self.style.row(problem)
        if self.style.toolbox.environment_is_chosen:
            del row["environment"]
        shown = None if environment is None else environment.reset(**row)
        *earlier, last = row["prompt"]
        return [*earlier, last if shown is None else {**last, "content": last["content"] + shown}]

    def _generate_single_turn(self, prompt_ids: list[list[int]], *_: Any, **__: Any) -> tuple[list[list[int]], None]:
        rows = continue_ids(self.model, self._tokenizer, prompt_ids, self.sampling)
        return [until_end(row, self.ends) for row in rows], None

    def _result(
        self,
        problem: Problem,
        environment: Environment,
        prompt: list[Any],
        said: list[Any],
        tokens: list[int],
        mask: list[int],
    ) -> tuple[Completion, Attempt]:
        text = last_words(said)
        completion = Completion(
            text=text,
            length=sum(mask),
            truncated=tokens[-1] not in self.ends,
            tokens=tuple(tokens),
            messages=tuple(said),
        )
        return completion, Attempt(problem, text, tokens, prompt, said, environment)


def last_words(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """What the model wrote last; nothing where a tool had the last word."""
    if isinstance(completion, str):
        return completion
    last = completion[-1]
    return str(last.get("content") or "") if last.get("role", "assistant") == "assistant" else ""


def result_ids(tokenizer: PreTrainedTokenizerBase, name: str, result: str) -> list[int]:
    """Tokens between the turn that called a tool and the next one, as TRL puts them there."""
    trainer: Any = SimpleNamespace(
        processing_class=tokenizer, _tokenizer=tokenizer, _is_vlm=False, chat_template=None, chat_template_kwargs={}
    )
    ids: list[int] = GRPOTrainer._get_tool_suffix_ids(trainer, [{"role": "tool", "name": name, "content": result}])
    return ids


def _sync(tool: Tool) -> Tool:
    return (lambda **arguments: finish(tool(**arguments))) if inspect.iscoroutinefunction(tool) else tool
