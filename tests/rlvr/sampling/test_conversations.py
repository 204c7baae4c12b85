"""Calls are read off, answered and masked alike in training and in an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM
from trl import GRPOConfig
from trl.chat_template_utils import add_response_schema, parse_response, qwen3_chat_template

from rlspec.config.load import load_recipe
from rlspec.config.tools import TOOLS
from rlspec.errors import ConfigError, DataError
from rlspec.optim import build_optimizer
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer, call_text
from rlspec.rlvr.sampling import conversation
from rlspec.rlvr.sampling.generation import Sampling
from rlspec.rlvr.sampling.prompts import PromptStyle
from rlspec.rlvr.tools import toolbox
from rlspec.rlvr.tools.calculator import calculator
from rlspec.rlvr.tools.toolbox import Toolbox, build_toolbox, teach_calls
from rlspec.rlvr.training.rewards import VerifierReward
from rlspec.rlvr.training.trainers import SpectralGRPOTrainer
from rlspec.rlvr.verifiers.environment import EnvironmentVerifier
from rlspec.rlvr.verifiers.verifier import Attempt, Judgement, Verifier


class Guess:
    """An environment: find the number."""

    def reset(self, secret: int, **row: Any) -> str:
        self.secret, self.tried, self.row = secret, 0, row
        return f" (of {secret + 1})"

    def guess(self, number: int) -> str:
        """Try a number.

        Args:
            number: The guess.
        """
        self.tried += 1
        self.found = number == self.secret
        return "yes" if self.found else "no"

    def get_reward(self) -> float | None:
        return (1.0 if self.found else 0.25) if self.tried else None


async def double(number: int) -> int:
    """Twice a number.

    Args:
        number: Any.
    """
    return 2 * number


class Seen(Verifier):
    """Remembers what it was asked to judge."""

    name = "seen"

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []

    def judge(self, attempts: Sequence[Attempt], **_: Any) -> list[Judgement]:
        self.attempts += attempts
        return [Judgement(float(attempt.text == "46"), "seen") for attempt in attempts]


PROBLEMS = [Problem("12+34=?", "46", None, 1, f"id{n}", columns={"secret": n, "id": f"row-{n}"}) for n in range(4)]
CALL = call_text("calculator", expression="12+34")
QWEN_SAID = "\n<|im_start|>user\n<tool_response>\n46\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
QWEN = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "12+34"}}\n</tool_call>'


def tokenizer_of(kind: str) -> PreTrainedTokenizerBase:
    tokenizer = build_byte_tokenizer(calls=True)
    if kind == "qwen3":
        tokenizer.chat_template, tokenizer.response_schema = qwen3_chat_template, None
    teach_calls(tokenizer, kind)
    return tokenizer


@pytest.fixture(scope="module")
def policy() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    return Qwen3ForCausalLM(Qwen3Config(**sizes, head_dim=16, intermediate_size=64, vocab_size=263, pad_token_id=0))


def script(tokenizer: PreTrainedTokenizerBase, turns: Sequence[Sequence[str]]) -> Any:
    """Stands in for sampling: the answers of each turn, of those conversations that go on."""
    left = iter(turns)

    def generate(*_: Any, **__: Any) -> list[list[int]]:
        return [
            [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in next(left)
        ]

    return generate


def train_batch(
    policy: Any,
    tokenizer: Any,
    style: PromptStyle,
    turns: Any,
    verifier: Verifier,
    folder: Path,
    problems: Sequence[Problem] = PROBLEMS,
    others: Sequence[Verifier] = (),
    **knobs: Any,
) -> Any:
    """One block of rollouts, as the trainer makes it."""
    arguments = {"per_device_train_batch_size": 4, "num_generations": 2, "max_steps": 1, "max_completion_length": 400}
    arguments |= {"chat_template_kwargs": style.template_kwargs, **knobs}
    config = GRPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], **arguments)
    trainer = SpectralGRPOTrainer(
        model=policy,
        reward_funcs=[VerifierReward(each, problems) for each in (verifier, *others)],
        args=config,
        train_dataset=Dataset.from_list([style.row(problem) for problem in problems]),
        processing_class=tokenizer,
        optimizer_factory=build_optimizer,
        checkpoint_extras=lambda _: {},
        keep_last=1,
        tools=list(style.toolbox.tools) or None,
        environment_factory=style.toolbox.environment_factory,
    )
    answers = script(tokenizer, turns)
    trainer._generate_single_turn = lambda *_, **__: (answers(), None)
    return trainer._generate_and_score_completions([style.row(problem) for problem in problems])


def evaluate(
    policy: Any,
    tokenizer: Any,
    style: PromptStyle,
    turns: Any,
    monkeypatch: pytest.MonkeyPatch,
    limit: int = 400,
    problems: Sequence[Problem] = PROBLEMS,
) -> list[Any]:
    monkeypatch.setattr(conversation, "continue_ids", script(tokenizer, turns))
    return conversation.converse(policy, tokenizer, problems, style, Sampling(limit), batch_size=8, seed=0)


@pytest.mark.parametrize(
    ("kind", "thinking", "call", "said"),
    [
        (
            "tiny",
            None,
            call_text("calculator", expression="12+34"),
            "\n<|im_start|>tool\n46<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("qwen3", None, QWEN, QWEN_SAID),
        ("qwen3", False, QWEN, f"{QWEN_SAID}<think>\n\n</think>\n\n"),
    ],
)
def test_results_of_calls_are_masked_and_training_and_evaluation_see_the_same(
    kind: str,
    thinking: bool | None,
    call: str,
    said: str,
    policy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    style = PromptStyle(enable_thinking=thinking, toolbox=Toolbox([calculator]))
    tokenizer, seen = tokenizer_of(kind), Seen()
    turns = [[call, "45", call, call.replace("12+34", "1/0")], ["46", "46", "47"]]
    batch = train_batch(policy, tokenizer, style, turns, seen, tmp_path)
    tools = [said, "", said, said.replace("46", "{'error': 'division by zero'}")]
    for row, (text, tool) in enumerate(zip(turns[0], tools, strict=True)):
        ids, kept = batch["completion_ids"][row], batch["completion_mask"][row].bool()
        mine = batch["tool_mask"][row].bool()
        assert tokenizer.decode(ids[kept & ~mine]) == tool
        assert tokenizer.decode(ids[kept & mine]).startswith(f"{text}<|im_end|>")
    assert int(batch["num_items_in_batch"]) == int((batch["completion_mask"] * batch["tool_mask"]).sum())
    assert [attempt.text for attempt in seen.attempts] == ["46", "45", "46", "47"]

    found = evaluate(policy, tokenizer, style, turns, monkeypatch)
    for row, (completion, attempt) in enumerate(found):
        kept = batch["completion_mask"][row].bool()
        assert list(completion.tokens) == batch["completion_ids"][row][kept].tolist()
        assert completion.length == int((batch["completion_mask"] * batch["tool_mask"])[row].sum())
        trained = seen.attempts[row]
        assert (attempt.text, list(attempt.messages), attempt.prompt) == (
            trained.text,
            trained.messages,
            trained.prompt,
        )
        assert not completion.truncated
    assert [each["role"] for each in found[0][0].messages] == ["assistant", "tool", "assistant"]


def test_a_result_that_does_not_fit_is_not_given_and_the_answer_ends_with_its_call(
    policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, style = tokenizer_of("tiny"), PromptStyle(toolbox=Toolbox([calculator]))
    for completion, attempt in evaluate(policy, tokenizer, style, [[CALL] * 4], monkeypatch, limit=len(CALL) + 4):
        assert (attempt.text, len(attempt.messages)) == ("", 1)
        assert completion.length == len(completion.tokens)


def test_an_answer_without_an_end_token_is_truncated(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, style = tokenizer_of("tiny"), PromptStyle(toolbox=Toolbox([calculator]))
    rows = [
        tokenizer("4", add_special_tokens=False)["input_ids"],
        [*tokenizer("46")["input_ids"], tokenizer.eos_token_id],
    ]
    monkeypatch.setattr(conversation, "continue_ids", lambda *_: rows)
    found = conversation.converse(policy, tokenizer, PROBLEMS[:2], style, Sampling(9), batch_size=2, seed=0)
    assert [(each.text, each.truncated) for each, _ in found] == [("4", True), ("46", False)]


def test_the_number_of_turns_with_calls_is_bounded_by_trls_knob(policy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, style = tokenizer_of("tiny"), PromptStyle(toolbox=Toolbox([calculator], most_calls=1))
    call = call_text("calculator", expression="1")
    found = evaluate(policy, tokenizer, style, [[call] * 4, [call] * 4], monkeypatch)
    assert [len(attempt.messages) for _, attempt in found] == [3] * 4


def test_an_environment_is_told_its_row_answers_calls_and_judges_alike_in_both(
    policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = PromptStyle(toolbox=Toolbox([double], {None: Guess}))
    tokenizer, judge = tokenizer_of("tiny"), EnvironmentVerifier()
    turns = [[call_text("guess", number=2)] * 2 + [call_text("double", number=3), "no call"], ["ok", "ok", "ok"]]
    turns[0][0] = call_text("guess", number=0)
    batch = train_batch(policy, tokenizer, style, turns, judge, tmp_path)
    # Groups of two: 1 and 0.25 differ; of the second neither is judged.
    assert [round(value, 2) for value in batch["advantages"].tolist()] == [0.71, -0.71, 0.0, 0.0]
    found = evaluate(policy, tokenizer, style, turns, monkeypatch)
    assert [each.score for each in judge.judge([attempt for _, attempt in found])] == [1.0, 0.25, None, None]
    environment = found[3][1].environment
    assert environment.row["answer"] == "46" and environment.row["id"] == "row-3" and environment.secret == 3
    assert found[3][1].prompt == [{"role": "user", "content": "12+34=? (of 4)"}]
    assert found[2][1].messages[1]["content"] == "6"
    assert "guess(number)" in style.text(PROBLEMS[0], tokenizer)


def test_an_environment_is_told_its_row_as_the_file_has_it() -> None:
    problem = Problem("12+34=?", "4000", None, 1, "hash", columns={"answer": "so #### 4,000", "id": "row-4"})
    row = PromptStyle(toolbox=Toolbox((), {None: Guess})).row(problem)
    assert (row["answer"], row["id"], row["rlspec_id"]) == ("so #### 4,000", "row-4", "hash")


def test_an_environments_own_reward_counts_once(policy: Any, tmp_path: Path) -> None:
    style, tokenizer = PromptStyle(toolbox=Toolbox((), {None: Guess})), tokenizer_of("tiny")
    turns = [[call_text("guess", number=0), call_text("guess", number=2), "46", "no"], ["46", "no"]]
    knobs = {"reward_weights": [1.0, 0.5], "scale_rewards": "none"}
    batch = train_batch(policy, tokenizer, style, turns, EnvironmentVerifier(), tmp_path, others=[Seen()], **knobs)
    # 1 + 0.5 and 0.25 + 0; of the second group only the text is judged: 0.5 and 0.
    assert batch["advantages"].tolist() == pytest.approx([0.625, -0.625, 0.25, -0.25])


class Other(Guess):
    """Another environment."""

    def look(self) -> str:
        """Look around."""
        return ""


def test_the_environment_that_a_row_names_is_told_the_same_of_it_in_both(
    policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    style = PromptStyle(toolbox=Toolbox((), {"guess": Guess, "other": Other}))
    names = ("guess", "other", "other", "guess")
    problems = [
        replace(problem, columns={"secret": 2, "environment": name})
        for problem, name in zip(PROBLEMS, names, strict=True)
    ]
    tokenizer, seen = tokenizer_of("tiny"), Seen()
    train_batch(policy, tokenizer, style, [["no call"] * 4], seen, tmp_path, problems)
    trained = [attempt.environment for attempt in seen.attempts]
    found = evaluate(policy, tokenizer, style, [["no call"] * 4], monkeypatch, problems=problems)
    measured = [attempt.environment for _, attempt in found]
    assert [type(each) for each in measured] == [type(each) for each in trained] == [Guess, Other, Other, Guess]
    assert [each.row for each in measured] == [each.row for each in trained]


def test_each_row_may_name_its_environment_and_one_that_names_none_is_refused() -> None:
    box = Toolbox((), {"guess": Guess, "other": Other})
    rows = [Problem("?", "", None, None, "x", columns={"environment": name}) for name in ("guess", "other", "third")]
    assert [[tool.__name__ for tool in box.offered(row)] for row in rows[:2]] == [["guess"], ["guess", "look"]]
    with pytest.raises(DataError, match="holds 'third'; the recipe's are guess, other"):
        box.offered(rows[2])


def test_a_thought_is_looked_for_only_where_it_ends() -> None:
    """Without that TRL's pattern takes the square of the length of an answer that is all thought."""
    tokenizer = tokenizer_of("qwen3")
    assert r"(?:(?=[\s\S]*</think>)<think>" in tokenizer.response_schema["x-regex"]
    for text in (f"<think>\nhm\n</think>\n\n{QWEN}", "<think>\n\n</think>\n\n46<|im_end|>", QWEN):
        own = build_byte_tokenizer(calls=True)
        own.chat_template, own.response_schema = qwen3_chat_template, None
        add_response_schema(own)
        assert parse_response(tokenizer, tokenizer(text)["input_ids"]) == parse_response(own, own(text)["input_ids"])


def test_every_built_in_tool_may_be_named_in_a_recipe() -> None:
    assert set(toolbox._BUILT_IN) == set(TOOLS)


def test_a_template_that_knows_no_calls_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="chat template of m knows no calls"):
        teach_calls(build_byte_tokenizer(), "m")
    unknown = build_byte_tokenizer(calls=True)
    unknown.response_schema = None
    unknown.chat_template += "{# another #}"
    with pytest.raises(ConfigError, match="cannot be read off the answers of m: Unrecognized chat template"):
        teach_calls(unknown, "m")


SOURCE = '''
def bare(x):
    return x

def hinted(x: int) -> int:
    """Without arguments explained."""
    return x

def calculator(expression: str) -> str:
    """Another one.

    Args:
        expression: Any.
    """
    return expression

class NoReset:
    def look(self) -> str:
        """Look."""
        return ""

class Judge:
    def reset(self, **row):
        return None

    def get_reward(self):
        return 1.0

class Silent:
    def reset(self, **row):
        return None
'''


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tools={0}:bare"], "bare cannot be described to a model"),
        (["tools={0}:hinted"], "hinted cannot be described to a model"),
        (["tools=[calculator,{0}:calculator]"], "two of them are called calculator"),
        (["environment={0}:NoReset"], "has no method reset"),
        (["environment={0}:Judge"], "add reward=environment"),
        (["environment={{a: '{0}:Judge', b: '{0}:Silent'}}"], "add reward=environment"),
        (["environment={0}:Silent", "reward=environment"], "no environment of the recipe has a method get_reward"),
    ],
)
def test_what_a_model_could_not_use_is_refused_in_one_line(overrides: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    given = [each.format(tmp_path / "mine.py") for each in overrides]
    with pytest.raises(ConfigError, match=message) as caught:
        build_toolbox(load_recipe(["recipe=grpo_calculator", "tools=[]", *given]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tools=calculater"], "tools=calculater: unknown; did you mean calculator"),
        (["tools=no_such_module:f"], "no module no_such_module"),
        (["environment=here"], "must be module:Class or file.py:Class"),
        (["tools=[]", "trainer.max_tool_calling_iterations=2"], "no effect without tools or environment"),
        (["reward=environment"], "there is none; add environment="),
    ],
)
def test_what_the_recipe_alone_shows_is_said_without_loading_anything(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(["recipe=grpo_calculator", *overrides])
