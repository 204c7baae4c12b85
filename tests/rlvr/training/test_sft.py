"""The warm start imitates what its recipe states, in an order that a restart does not change."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rlspec.checkpoint import checkpoint_name
from rlspec.config.rlvr_schema import Corruption
from rlspec.errors import ConfigError, DataError
from rlspec.optim import build_optimizer
from rlspec.rlvr.data.arithmetic import Mistakes, answer, worked_solution
from rlspec.rlvr.data.problems import Problem, content_id, extract_gold, load_problems
from rlspec.rlvr.models.loading import build_model
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer
from rlspec.rlvr.sampling.prompts import PromptStyle
from rlspec.rlvr.training.sft import IGNORED, SpectralSFTTrainer, end_in_box, sft_dataset

TOKENIZER = build_byte_tokenizer()
CORRUPTION = Corruption(drop_carry=0.6, digit_slip=0.1, drop_box=0.25)
DEBUG: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "intermediate_size": 64,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    return load_problems(name="arithmetic", levels=[2], seed=0)[0][:50]


def table(problems: list[Problem], **settings: Any) -> Any:
    return sft_dataset(problems, TOKENIZER, **{"examples": 120, "seed": 0, "corruption": CORRUPTION, **settings})


def texts(row: dict[str, list[int]]) -> tuple[str, str]:
    """Prompt without a loss and completion with one."""
    first = next(index for index, label in enumerate(row["labels"]) if label != IGNORED)
    assert row["labels"][first:] == row["input_ids"][first:]
    return TOKENIZER.decode(row["input_ids"][:first]), TOKENIZER.decode(row["input_ids"][first:])


# --- the table


def test_only_the_solution_and_the_end_of_turn_have_a_loss(problems: list[Problem]) -> None:
    for row in table(problems, corruption=None, style=PromptStyle(instruction="Box it.")):
        prompt, completion = texts(row)
        problem = prompt.removeprefix("<|im_start|>user\n").partition("\n")[0]
        assert prompt == f"<|im_start|>user\n{problem}\nBox it.<|im_end|>\n<|im_start|>assistant\n"
        assert completion == worked_solution(problem) + "<|im_end|>"


def test_every_pass_visits_every_problem_in_another_order_with_other_mistakes(problems: list[Problem]) -> None:
    rows = [texts(row) for row in table(problems, examples=100)]
    first, second = rows[:50], rows[50:]
    assert {prompt for prompt, _ in first} == {prompt for prompt, _ in second}
    assert [prompt for prompt, _ in first] != [prompt for prompt, _ in second]
    assert sum(dict(first)[prompt] != completion for prompt, completion in second) > 10


def test_an_example_depends_on_seed_and_place_alone(problems: list[Problem]) -> None:
    assert table(problems, examples=120).to_dict() == table(problems, examples=500).select(range(120)).to_dict()
    assert table(problems).to_dict() != table(problems, seed=1).to_dict()


def test_mistakes_come_at_the_stated_rates() -> None:
    problems = load_problems(name="arithmetic", levels=[2], seed=0)[0][:400]
    seen: Counter[str] = Counter()
    for row in table(problems, examples=4000):
        prompt, completion = texts(row)
        problem = prompt.removeprefix("<|im_start|>user\n").partition("<")[0]
        solution = completion.removesuffix("<|im_end|>")
        gold, boxed = extract_gold(solution)
        right = (gold if boxed else solution.rpartition(",")[2]) == answer(problem)
        carry = worked_solution(problem, Mistakes(drop_carry=True)) != worked_solution(problem)
        seen.update([f"carry={carry}", f"carry={carry} right={right}", f"boxed={boxed}"])
    assert seen["carry=True right=True"] / seen["carry=True"] == pytest.approx(0.4 * 0.9, abs=0.04)
    assert seen["carry=False right=True"] / seen["carry=False"] == pytest.approx(0.9, abs=0.03)
    assert seen["boxed=True"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_what_cannot_be_imitated_or_spoilt_is_refused(problems: list[Problem]) -> None:
    bare = Problem("1+1=?", "2", None, 1, content_id("1+1=?"))
    with pytest.raises(DataError, match="no worked solution"):
        table([bare])
    words = Problem("How many?", "2", "Two. #### 2", 1, content_id("How many?"))
    with pytest.raises(ConfigError, match="generated arithmetic only"):
        table([words])
    assert texts(table([words], corruption=None)[0])[1] == "Two. #### 2<|im_end|>"


# --- training


def train(folder: Path, problems: list[Problem], steps: int, resume: bool = False) -> PreTrainedModel:
    arguments = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=8,
        max_steps=steps,
        save_steps=2,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        logging_steps=1,
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    trainer = SpectralSFTTrainer(
        model=build_model(architecture=DEBUG, tokenizer=TOKENIZER, seed=0),
        args=arguments,
        train_dataset=table(problems, examples=8 * 40),
        processing_class=TOKENIZER,
        optimizer_factory=lambda model: build_optimizer(model, rule="adamw", lr=3e-3),
        checkpoint_extras=lambda folder: {},
        keep_last=1,
    )
    seen: list[list[int]] = []
    compute_loss = trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, *args, **kwargs: (  # type: ignore[method-assign]
        seen.extend(inputs["input_ids"].tolist()) or compute_loss(model, inputs, *args, **kwargs)
    )
    trainer.train(resume_from_checkpoint=str(folder / checkpoint_name(2)) if resume else None)
    trainer.model.seen, trainer.model.losses = seen, [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return trainer.model


def test_training_follows_the_table_and_the_loss_falls(tmp_path: Path, problems: list[Problem]) -> None:
    model = train(tmp_path, problems, steps=40)
    rows = table(problems, examples=8 * 40)["input_ids"]
    assert [[t for t in row if t != TOKENIZER.pad_token_id] for row in model.seen] == list(rows)
    assert model.losses[-1] < 0.7 * model.losses[0]


def test_two_steps_resumed_for_two_more_equal_four(tmp_path: Path, problems: list[Problem]) -> None:
    whole = train(tmp_path / "whole", problems, steps=4)
    train(tmp_path / "parts", problems, steps=2)
    resumed = train(tmp_path / "parts", problems, steps=4, resume=True)
    assert resumed.seen == whole.seen[16:]
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())


@pytest.mark.parametrize(
    ("solution", "answer", "expected"),
    [
        ("2*9=<<2*9=18>>18 eggs.\n#### 18", "18", "2*9=18 eggs.\n\\boxed{18}"),
        ("So it is 5.", "5", "So it is 5.\n\\boxed{5}"),
        ("Thus $\\boxed{\\frac12}$.", r"\frac12", "Thus $\\boxed{\\frac12}$."),
    ],
)
def test_a_solution_without_a_box_ends_in_the_golds(solution: str, answer: str, expected: str) -> None:
    assert end_in_box(solution, answer) == expected
    assert extract_gold(end_in_box(solution, answer)) == (answer, True)


def test_an_end_token_that_also_pads_keeps_its_loss() -> None:
    """SmolLM2's is both; masks by value would teach never to end."""
    tokenizer = build_byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    problems = [Problem("1+1?", "2", "2", None, "a"), Problem("1+1+1?", "3", "1+1=2,3", None, "b")]
    rows = sft_dataset(problems, tokenizer, examples=2, seed=0)
    batch = DataCollatorForLanguageModeling(pad_token_id=tokenizer.pad_token_id)(list(rows))
    ends = (batch["labels"] == tokenizer.eos_token_id).sum(dim=1)
    assert ends.tolist() == [1, 1]
    assert len({len(row["input_ids"]) for row in rows}) == 2  # one of them is padded


def test_the_format_phase_boxes_what_it_imitates() -> None:
    problem = Problem("A hen lays 9 eggs. Two hens?", "18", "2*9=18\n#### 18", None, "x")
    (row,) = table([problem], examples=1, corruption=None, box_answers=True)
    assert texts(row)[1] == "2*9=18\n\\boxed{18}<|im_end|>"
    (row,) = table([problem], examples=1, corruption=None)
    assert "boxed" not in texts(row)[1]
