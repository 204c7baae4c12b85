"""What stands around a problem when a policy is asked; the same in training and in evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlspec.rlvr.data.problems import Problem, format_prompt
from rlspec.rlvr.tools.toolbox import Toolbox


@dataclass(frozen=True)
class PromptStyle:
    """Messages around a problem, switches of the chat template, and the tools that it introduces."""

    system_prompt: str | None = None
    instruction: str | None = None
    enable_thinking: bool | None = None
    toolbox: Toolbox = Toolbox()

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the chat template."""
        return {} if self.enable_thinking is None else {"enable_thinking": self.enable_thinking}

    def messages(self, problem: Problem) -> list[dict[str, str]]:
        """The conversation that asks for an answer."""
        return format_prompt(problem, system_prompt=self.system_prompt, instruction=self.instruction)

    def row(self, problem: Problem) -> dict[str, Any]:
        """A row as TRL's trainers take it: ``prompt`` (chat messages), ``answer``, ``rlspec_id``.

        Where there are environments the file's columns are among them, as they stand: `reset` is told a whole row.
        """
        columns = problem.columns if self.toolbox.factories else {}
        return {"answer": problem.answer, **columns, "prompt": self.messages(problem), "rlspec_id": problem.id}

    def text(self, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> str:
        """The templated prompt."""
        return self.render(self.messages(problem), problem, tokenizer)

    def render(self, messages: list[Any], problem: Problem, tokenizer: PreTrainedTokenizerBase) -> str:
        """A conversation in which the model is to speak next, with the tools that the problem offers."""
        tools: list[Any] = self.toolbox.offered(problem) if self.toolbox else []
        text = tokenizer.apply_chat_template(
            messages,
            tools=tools or None,  # some templates introduce an empty list
            tokenize=False,
            add_generation_prompt=True,
            **self.template_kwargs,
        )
        return str(text)

    def length(self, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> int:
        """Tokens of the templated prompt."""
        return len(tokenizer(self.text(problem, tokenizer), add_special_tokens=False)["input_ids"])
