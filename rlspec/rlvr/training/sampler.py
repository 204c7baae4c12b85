"""The order of prompts: a pure function of seed and position, so that a resumed run sees what it would have seen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain, count, islice, repeat

from torch.utils.data import Sampler


def epoch_permutation(num_prompts: int, *, seed: int, epoch: int) -> list[int]:
    """Order of the prompts in one pass over the data."""
    # A generator of its own for every epoch: nothing to save, nothing that an evaluation in between could move.
    # (torch's CPU generator reads only the lower 32 bits of a seed, so two numbers cannot be packed into one for it.)
    return random.Random(f"{seed}:{epoch}").sample(range(num_prompts), num_prompts)


class PromptSampler(Sampler[int]):
    """Indices of a whole run in TRL's layout: blocks of prompts, each prompt repeated, each block repeated.

    Passes over the data follow each other without a gap: no prompts are dropped at the end of a pass, and a block may
    hold the end of one pass and the start of the next. TRL's own sampler restarts with the order of epoch 0.

    Args:
        num_prompts: Size of the data set.
        prompts_per_block: Prompts sampled at once.
        samples_per_prompt: Completions per prompt.
        block_repeats: How often TRL fetches a block: steps_per_generation * num_iterations.
        num_blocks: Length of the run in blocks.
        seed: Seed of the order.
        shuffle: False keeps the data set's order in every pass.
        origin: Block from which on blocks have this size, and the prompts that smaller ones drew before. Who starts
            there passes over the blocks before it, which hold nothing of use.
    """

    def __init__(
        self,
        *,
        num_prompts: int,
        prompts_per_block: int,
        samples_per_prompt: int,
        block_repeats: int,
        num_blocks: int,
        seed: int,
        shuffle: bool = True,
        origin: tuple[int, int] = (0, 0),
    ) -> None:
        self.num_prompts = num_prompts
        self.prompts_per_block = prompts_per_block
        self.samples_per_prompt = samples_per_prompt
        self.block_repeats = block_repeats
        self.num_blocks = num_blocks
        self.seed = seed
        self.shuffle = shuffle
        self.origin = origin

    def _prompts(self) -> Iterator[int]:
        for epoch in count():
            if self.shuffle:
                yield from epoch_permutation(self.num_prompts, seed=self.seed, epoch=epoch)
            else:
                yield from range(self.num_prompts)

    def __iter__(self) -> Iterator[int]:
        first_block, drawn = self.origin
        prompts = chain(repeat(0, first_block * self.prompts_per_block), islice(self._prompts(), drawn, None))
        for _ in range(self.num_blocks):
            block = [index for index in islice(prompts, self.prompts_per_block) for _ in range(self.samples_per_prompt)]
            for _ in range(self.block_repeats):
                yield from block

    def __len__(self) -> int:
        return self.num_blocks * self.block_repeats * self.prompts_per_block * self.samples_per_prompt
