"""A language model as something to diagnose: fresh rollouts, graded, and the loss that its recipe has on them.

On the rollouts of the policy itself every ratio is 1, no clip is active, and GRPO and GMPO differ in what they average
over alone: tokens of the batch (`dapo`, `bnpo`, `dr_grpo`) or of each answer (`grpo`, GMPO).
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from rlspec.config.adapters import ADAPTERS
from rlspec.config.optim import map_settings
from rlspec.config.rlvr_schema import Model, Recipe
from rlspec.diagnostics.subject import Part, Subject, check_finite, stored_moments
from rlspec.display import Display
from rlspec.errors import ConfigError, DataError
from rlspec.optim import symmetry_map
from rlspec.policy_gradient import Scale, group_advantages
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.measure import load_trained
from rlspec.rlvr.models.loading import load_tokenizer
from rlspec.rlvr.sampling.generation import Policy, Sampling, end_token_ids, generate_tokens, until_end
from rlspec.rlvr.session import ProblemSets, load_policy, optimizer_factory, prompt_style, read_problems
from rlspec.rlvr.training.arguments import completion_length
from rlspec.rlvr.training.sampler import epoch_permutation
from rlspec.rlvr.training.sft import IGNORED, sft_dataset
from rlspec.rlvr.verifiers.verifier import Attempt
from rlspec.runtime.devices import choose_device
from rlspec.runtime.quiet import quiet_libraries

OPTIMIZER_FILE = "optimizer.pt"  # transformers' name
BY_ANSWER = ("grpo", "gmpo")  # losses that average over the tokens of each answer first
REMEDY = (
    "answers that are all right or all wrong in every group leave none; give more groups (parts=N), longer answers "
    "(trainer.max_completion_length) or problems of another difficulty"
)
_FORWARD = 64  # sequences that are generated at a time
_MOST_PARTS = 64
_SMALLEST_SPREAD = 1e-4  # TRL's, added to a group's standard deviation
_SCALES: dict[Any, Scale] = {"group": "group", True: "group", "batch": "batch", "none": "none", False: "none"}  # TRL's


def language_subject(
    recipe: Recipe, folder: str | None, *, display: Display, parts: int | None = None, size: int | None = None
) -> Subject:
    """The policy in `folder`, or the one that the recipe starts from, with parts of its loss.

    Args:
        recipe: says problems, sampling, loss and optimizer.
        folder: of a checkpoint or model, or a hub id; None: the recipe's own start.
        display: shows what happens.
        parts: groups of completions, or micro-batches of examples; None: two steps' worth, at most 64.
        size: completions of a group, or examples of a micro-batch; None: the recipe's.

    Raises:
        DataError: There is nothing to train on.
        CheckpointError: It cannot be loaded, or has weights that are no numbers.
    """
    if recipe.tools or recipe.environment:
        raise ConfigError("tools: answers are sampled without calls here; add 'tools=[]' environment=null reward=math")
    quiet_libraries()
    display.line(f"loading {folder or recipe.model.name}")
    policy, tokenizer = _load(recipe.model, folder, recipe.seed)
    check_finite(policy, folder or f"model={recipe.model.name}")
    policy.to(choose_device(recipe.device))
    problems = read_problems(recipe.data, whole_rows=recipe.whole_rows)[0]
    if not problems:
        raise DataError(f"data={recipe.data.name}: it has no problems to train on; choose another data set")
    supervised = recipe.algorithm == "sft"
    size = size or (4 if supervised else recipe.batch.samples_per_prompt)
    step_parts = max(1, recipe.batch.prompts_per_step // (size if supervised else 1))
    count = parts or min(_MOST_PARTS, 2 * step_parts)
    chosen = [problems[index] for index in epoch_permutation(len(problems), seed=recipe.seed, epoch=0)]
    if supervised:
        style, corruption, examples = prompt_style(recipe.model), recipe.corruption, count * size
        table = sft_dataset(chosen, tokenizer, examples=examples, seed=recipe.seed, corruption=corruption, style=style)
        found, loss = _supervised_parts(table, size, policy.device, tokenizer), partial(_example_loss, policy)
    else:
        found = _rollout_parts(recipe, policy, tokenizer, chosen[:count], size, display)
        kind = "gmpo" if recipe.algorithm == "gmpo" else recipe.trainer.get("loss_type", "dapo")
        loss = partial(_rollout_loss, policy, recipe.trainer.get("temperature", 1.0), kind in BY_ANSWER)
    build = optimizer_factory(recipe.optim, recipe.batch.prompts_per_step)
    momenta, variances = stored_moments(folder, OPTIMIZER_FILE, policy, build)
    return Subject(
        title=f"{Path(folder).name if folder else recipe.model.name}, {recipe.recipe}",
        model=policy,
        mapping=symmetry_map(policy, **map_settings(recipe.optim)),
        parts=found,
        unit=f"micro-batches of {size} examples" if supervised else f"groups of {size} completions",
        step_parts=step_parts,
        loss=loss,
        represent=partial(_represent, policy),
        optimizer=build,
        display=display,
        remedy=REMEDY,
        momenta=momenta,
        variances=variances,
    )


def _load(model: Model, folder: str | None, seed: int) -> tuple[Policy, PreTrainedTokenizerBase]:
    adapters = folder is not None and (Path(folder) / ADAPTERS).is_file()
    source = model.path if folder is None or adapters else folder
    tokenizer = load_tokenizer(source, revision=model.revision)
    if folder is None:
        return load_policy(model, tokenizer, seed=seed), tokenizer
    policy = load_trained(model, folder, tokenizer, adapters=adapters)
    if adapters:
        for name, value in policy.named_parameters():
            value.requires_grad_("lora_" in name)
    return policy, tokenizer


def _rollout_parts(
    recipe: Recipe,
    policy: Policy,
    tokenizer: PreTrainedTokenizerBase,
    chosen: list[Problem],
    size: int,
    display: Display,
) -> list[Part]:
    """A group of answers to each problem, graded."""
    style, trainer = prompt_style(recipe.model), recipe.trainer
    display.line(f"sampling {size} answers to each of {len(chosen)} problems of {recipe.data.name}")
    sampling = Sampling(
        max_new_tokens=completion_length(trainer, recipe.evaluation),
        temperature=trainer.get("temperature", 1.0),
        top_p=trainer.get("top_p", 1.0),
        top_k=trainer.get("top_k") or 0,
    )
    prompts = [style.text(problem, tokenizer) for problem in chosen for _ in range(size)]
    found = dict(generate_tokens(policy, tokenizer, prompts, sampling, batch_size=_FORWARD, seed=recipe.seed))
    ends = set(end_token_ids(policy, tokenizer))
    rows = [until_end(found[index], ends) for index in range(len(prompts))]
    texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
    asked = [problem for problem in chosen for _ in range(size)]
    attempts = [
        Attempt(problem, text, row, style.messages(problem))
        for problem, text, row in zip(asked, texts, rows, strict=True)
    ]
    judges = ProblemSets(chosen, {}).verifiers(recipe.rewards, recipe.grader, thinking=recipe.model.enable_thinking)
    with closing(judges) as verifiers:
        totals, right = (torch.tensor(each, dtype=torch.float32) for each in verifiers.judge(attempts))
    rewards, right = totals.view(len(chosen), size), right.view(len(chosen), size)
    scale = _SCALES[trainer.get("scale_rewards", "group")]
    advantages = group_advantages(rewards, scale=scale, epsilon=_SMALLEST_SPREAD)
    tokens = sum(map(len, rows))
    parts = []
    for index, problem in enumerate(chosen):
        prompt = tokenizer(prompts[index * size], add_special_tokens=False)["input_ids"]
        batch = _batch(prompt, rows[index * size : (index + 1) * size], int(tokenizer.pad_token_id or 0), policy.device)
        batch |= {"advantages": advantages[index].to(policy.device), "share": len(chosen) / tokens}
        facts = {"pass_rate": float(right[index].mean()), "reward_variance": float(rewards[index].var(correction=0))}
        parts.append(Part(batch, " ".join(problem.problem.split()), facts))
    return parts


def _batch(prompt: list[int], rows: list[list[int]], padding: int, device: torch.device) -> dict[str, Any]:
    """One prompt with several answers, padded on the right: a causal model needs no attention mask for that."""
    longest = max(map(len, rows))
    tokens = [prompt + row + [padding] * (longest - len(row)) for row in rows]
    mask = [[1.0] * len(row) + [0.0] * (longest - len(row)) for row in rows]
    return {
        "input_ids": torch.tensor(tokens, device=device),
        "mask": torch.tensor(mask, device=device),
        "prompt": len(prompt),
    }


def _rollout_loss(policy: Policy, temperature: float, by_answer: bool, batch: dict[str, Any]) -> Tensor:
    """The surrogate `-sum A ratio` of a group, scaled so that the mean over groups is the loss of the batch."""
    start, mask = batch["prompt"], batch["mask"]
    logits = policy(input_ids=batch["input_ids"], logits_to_keep=mask.shape[1] + 1).logits[:, :-1]
    scores = F.log_softmax(logits.float() / temperature, -1)
    logps = scores.gather(-1, batch["input_ids"][:, start:, None])[..., 0]
    gain = (logps - logps.detach()).exp() * batch["advantages"][:, None] * mask
    if by_answer:
        return -(gain.sum(1) / mask.sum(1)).mean()
    return -gain.sum() * batch["share"]


def _supervised_parts(
    table: Dataset, size: int, device: torch.device, tokenizer: PreTrainedTokenizerBase
) -> list[Part]:
    """Micro-batches of worked solutions."""
    parts, padding = [], int(tokenizer.pad_token_id or 0)
    for number in range(len(table) // size):
        rows = [table[number * size + index] for index in range(size)]
        longest = max(len(row["input_ids"]) for row in rows)
        batch = {
            name: torch.tensor([row[name] + [filler] * (longest - len(row[name])) for row in rows], device=device)
            for name, filler in (("input_ids", padding), ("labels", IGNORED))
        }
        parts.append(Part(batch, f"examples {number * size} to {(number + 1) * size - 1}"))
    return parts


def _example_loss(policy: Policy, batch: dict[str, Any]) -> Tensor:
    loss: Tensor = policy(input_ids=batch["input_ids"], labels=batch["labels"]).loss
    return loss


def _represent(policy: Policy, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Last hidden states that predict the tokens with a loss, and these tokens; each sequence alone, unpadded."""
    states, labels = [], []
    for row in range(len(batch["input_ids"])):
        tokens = batch["input_ids"][row]
        if "labels" in batch:
            counted = batch["labels"][row] != IGNORED
        else:
            counted = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
            counted[batch["prompt"] :] = batch["mask"][row].bool()
        last = int(counted.nonzero().max()) + 1
        hidden = policy(input_ids=tokens[None, :last], output_hidden_states=True).hidden_states[-1][0]
        places = counted[:last].nonzero()[:, 0]
        states.append(hidden[places - 1].float())
        labels.append(tokens[places])
    return torch.cat(states), torch.cat(labels)
