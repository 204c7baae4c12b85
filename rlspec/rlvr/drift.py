"""How far a trained policy went from where it started, measured on its own answers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rlspec.checkpoint import list_checkpoints
from rlspec.config.adapters import ADAPTERS
from rlspec.config.load import load_recipe
from rlspec.config.rlvr_schema import Model
from rlspec.errors import CheckpointError
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.measure import load_trained
from rlspec.rlvr.models.loading import load_tokenizer
from rlspec.rlvr.sampling.generation import Policy
from rlspec.rlvr.sampling.prompts import PromptStyle
from rlspec.rlvr.session import load_policy, prompt_style
from rlspec.run_directory import RECIPE, RunDirectory
from rlspec.runtime.devices import choose_device

ANSWERS = 1024  # at most
Answer = tuple[str, str, bool]  # problem, answer, whether it was cut short and so has no end token
TOKENS = 2**15  # of one forward pass, with the padding


def drift_of_run(folder: Path, *, most: int = ANSWERS) -> Mapping[str, float]:
    """KL divergence of a finished run's policy from its start, estimated on the answers that its last evaluation drew.

    The mean of log p_now - log p_start over whole answers drawn from p_now is an unbiased estimate of KL(now || start)
    per answer where they were drawn at temperature 1 from the whole vocabulary; other draws are refused. Of an answer
    that was cut short what was drawn counts. Texts are tokenised again, which may differ from how they were drawn.

    Returns:
        `KL per answer` and `KL per token` in nats, the latter over all tokens, and `KL error`, the standard error of
        the former.

    Raises:
        CheckpointError: The run has no checkpoint or no answers, or drew them otherwise.
    """
    recipe = load_recipe([f"recipe={folder / RECIPE}"])
    if not recipe.evaluation.unchanged:
        raise CheckpointError(f"{folder}: its answers were not drawn at temperature 1 from the whole vocabulary")
    newest = list_checkpoints(RunDirectory(folder).checkpoints)
    answers = _answers(folder, most)
    if not newest or not answers:
        raise CheckpointError(f"{folder}: no checkpoint, or no sampled answers in evaluations/after-*.jsonl")
    now, start, tokenizer = _policies(recipe.model, recipe.seed, newest[-1])
    device = torch.device(choose_device(recipe.device))
    now, start = now.to(device).eval(), start.to(device).eval()
    ratios, tokens = [], 0
    for ids, answer_mask in _batches(prompt_style(recipe.model), tokenizer, answers, device):
        difference = (_log_probs(now, ids) - _log_probs(start, ids)).double() * answer_mask[:, 1:]
        ratios += difference.sum(dim=1).tolist()
        tokens += int(answer_mask.sum())
    mean = math.fsum(ratios) / len(ratios)
    spread = math.sqrt(math.fsum((ratio - mean) ** 2 for ratio in ratios) / max(1, len(ratios) - 1))
    return {
        "KL per answer": mean,
        "KL per token": math.fsum(ratios) / tokens,
        "KL error": spread / math.sqrt(len(ratios)),
    }


def _answers(folder: Path, most: int) -> list[Answer]:
    """(problem, answer, cut short) of the first set of problems."""
    files = sorted(RunDirectory(folder).evaluations.glob("after-*.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = files[0].read_text(encoding="utf-8").splitlines() if files else []
    rows = [row for row in map(json.loads, lines) if row["mode"] != "greedy"]
    stride = max(1, len(rows) // most)
    return [(row["problem"], row["completion"], bool(row["truncated"])) for row in rows[::stride][:most]]


def _policies(model: Model, seed: int, checkpoint: Path) -> tuple[Policy, Policy, PreTrainedTokenizerBase]:
    adapters = (checkpoint / ADAPTERS).is_file()
    tokenizer = load_tokenizer(str(checkpoint) if not adapters else model.path, revision=model.revision)
    now = load_trained(model, str(checkpoint), tokenizer, adapters=adapters)
    fresh = model.lora is None or model.lora.path is None  # adapters that change nothing yet
    start = load_policy(model.model_copy(update={"lora": None}) if fresh else model, tokenizer, seed=seed)
    return now, start, tokenizer


def _batches(
    style: PromptStyle, tokenizer: PreTrainedTokenizerBase, answers: Sequence[Answer], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids (answers, length), padded behind, and where the answers and their ends are."""
    rows = []
    for problem, answer, cut in answers:
        prompt = tokenizer(style.text(Problem(problem, "", None, None, ""), tokenizer), add_special_tokens=False)[
            "input_ids"
        ]
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"] + ([] if cut else [tokenizer.eos_token_id])
        rows.append((prompt, ids))
    rows.sort(key=lambda row: len(row[0]) + len(row[1]))
    while rows:
        longest = len(rows[-1][0]) + len(rows[-1][1])
        batch, rows = rows[-max(1, TOKENS // longest) :], rows[: -max(1, TOKENS // longest)]
        ids = torch.full((len(batch), longest), tokenizer.eos_token_id)
        mask = torch.zeros(len(batch), longest, dtype=torch.float64)
        for index, (prompt, answer_ids) in enumerate(batch):
            ids[index, : len(prompt) + len(answer_ids)] = torch.tensor(prompt + answer_ids)
            mask[index, len(prompt) : len(prompt) + len(answer_ids)] = 1.0
        yield ids.to(device), mask.to(device)


@torch.no_grad()
def _log_probs(model: Policy, ids: torch.Tensor) -> torch.Tensor:
    """Of each token given those before it (answers, length - 1). Padding stands behind and is not seen from before."""
    logits = model(input_ids=ids).logits[:, :-1].float()
    return torch.log_softmax(logits, dim=-1).gather(2, ids[:, 1:, None])[..., 0]
