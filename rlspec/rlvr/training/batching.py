"""Batch sizes in prompts, and the five numbers of TRL that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

from rlspec.errors import ConfigError

_DEFAULT_MICRO_BATCH = 64  # completions; profiles of real models name their own


@dataclass(frozen=True)
class BatchPlan:
    """What one optimizer step and one block of rollouts consist of; completions unless stated."""

    prompts_per_step: int
    samples_per_prompt: int
    updates_per_generation: int
    micro_batch: int
    world_size: int

    @property
    def completions_per_step(self) -> int:
        """Completions behind one optimizer step, over all processes."""
        return self.prompts_per_step * self.samples_per_prompt

    @property
    def gradient_accumulation_steps(self) -> int:
        """Forward and backward passes of one process in one optimizer step."""
        return self.completions_per_step // (self.micro_batch * self.world_size)

    @property
    def prompts_per_generation(self) -> int:
        """Prompts sampled together, before `updates_per_generation` optimizer steps."""
        return self.prompts_per_step * self.updates_per_generation

    @property
    def rollouts_per_process(self) -> int:
        """Completions that one process samples at once."""
        return self.prompts_per_generation * self.samples_per_prompt // self.world_size

    def trl_arguments(self) -> dict[str, int]:
        """Keyword arguments of `trl.GRPOConfig`."""
        return {
            "per_device_train_batch_size": self.micro_batch,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
            "steps_per_generation": self.gradient_accumulation_steps * self.updates_per_generation,
            "num_generations": self.samples_per_prompt,
        }

    def describe(self) -> str:
        """One paragraph for the start of a run."""
        trl = ", ".join(f"{key} {value}" for key, value in self.trl_arguments().items())
        return (
            f"{self.prompts_per_step} prompts x {self.samples_per_prompt} samples = {self.completions_per_step} "
            f"completions per optimizer step; {self.prompts_per_generation} prompts sampled at once for "
            f"{self.updates_per_generation} update(s); {self.world_size} process(es)\n  TRL: {trl}"
        )


def plan_batches(
    *,
    prompts_per_step: int,
    samples_per_prompt: int,
    updates_per_generation: int,
    micro_batch: int | None,
    world_size: int = 1,
) -> BatchPlan:
    """Check the batch sizes and fill in `micro_batch` (the largest divisor up to 64).

    Raises:
        ConfigError: The completions of a step cannot be divided among processes and micro batches.
    """
    completions = prompts_per_step * samples_per_prompt
    if completions % world_size:
        raise ConfigError(
            f"batch: {prompts_per_step} prompts x {samples_per_prompt} samples = {completions} completions cannot be "
            f"divided among {world_size} processes; change batch.prompts_per_step or batch.samples_per_prompt"
        )
    local = completions // world_size
    if micro_batch is None:
        micro_batch = max(size for size in range(1, min(local, _DEFAULT_MICRO_BATCH) + 1) if local % size == 0)
    if local % micro_batch:
        allowed = [size for size in range(1, local + 1) if local % size == 0]
        nearest = min(allowed, key=lambda size: abs(size - micro_batch))
        raise ConfigError(
            f"batch.micro_batch={micro_batch} does not divide the {local} completions that each process has in a step; "
            f"the nearest that does is {nearest}"
        )
    return BatchPlan(prompts_per_step, samples_per_prompt, updates_per_generation, micro_batch, world_size)
