"""Say what a run needs on many GPUs, before anyone rents them: `python -m rlspec.plan model=qwen3_32b gpus=64`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from rlspec.config.command import CommandLine, one_of
from rlspec.config.schema import Key
from rlspec.entry import command


def _hardware() -> list[str]:
    from rlspec.runtime.planner import DEVICES

    return list(DEVICES)


class PlanCommand(CommandLine):
    """Memory per device, bytes that it sends and seconds per step of the optimizer, of training and of rollouts, from
    the model's shapes and the maker's rates of a device; then what does not fit, and what to change. Bytes and the
    static part of the memory are exact, times are estimates: see tests/benchmarks/README.md for how far off.
    """  # noqa: D205

    command = "plan"
    synopsis = ("model=NAME gpus=N [key=value ...]",)
    example = "gpus=64"

    model: Annotated[str, Key("qwen3_0.6b to qwen3_32b, or a folder with config.json")]
    gpus: Annotated[int, Key("devices, eight to a node")] = Field(8, ge=1, le=100_000)
    hardware: Annotated[str, one_of(_hardware), Key("the device")] = "h100_80gb"
    sharding: Annotated[Literal["fsdp2", "ddp"], Key("how they share the weights")] = "fsdp2"
    optim: Annotated[Literal["heads", "whole", "adamw"], Key("rules per head, of whole matrices, or AdamW")] = "heads"
    prompts: Annotated[int, Key("per step")] = Field(128, ge=1)
    samples: Annotated[int, Key("per prompt")] = Field(8, ge=1)
    length: Annotated[int, Key("tokens of a prompt and its completion")] = Field(2048, ge=1)
    micro_batch: Annotated[int, Key("completions in one pass of a device")] = Field(1, ge=1)
    engine: Annotated[Literal["vllm", "transformers"], Key("of rollouts; vllm: on devices of its own")] = "vllm"
    format: Annotated[Literal["text", "json"], Key("of the answer")] = "text"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return command(PlanCommand, _plan, argv)


def _plan(line: PlanCommand) -> int:
    from rlspec.runtime.planner import DEVICES, Workload, as_values, describe, plan, shape_of

    shape = shape_of(line.model)
    load = Workload(
        gpus=line.gpus,
        sharding=line.sharding,
        per_head=line.optim == "heads",
        elementwise=line.optim == "adamw",
        prompts=line.prompts,
        samples=line.samples,
        length=line.length,
        micro_batch=line.micro_batch,
        engine=line.engine,
    )
    made = plan(shape, load, DEVICES[line.hardware])
    if line.format == "json":
        sys.stdout.write(json.dumps(as_values(made), indent=2) + "\n")
    else:
        sys.stdout.write(describe(made, shape, load, line.model, line.hardware))
    return 1 if any(problem.startswith("does not fit") for problem in made.problems) else 0


if __name__ == "__main__":
    sys.exit(main())
