"""What a run of a language model needs on many devices, from shapes and a few rates: memory, bytes sent, time per step.

Bytes and static memory follow from shapes. Times are products and bytes over a device's rates, which no run reaches:
`EFFICIENCY` says which share is taken for granted. No torch: a plan takes no time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlspec.errors import ConfigError, nearest

GIB = 2**30
PER_NODE = 8  # devices of a node


@dataclass(frozen=True)
class Device:
    """Rates of one device, per second; its maker's."""

    memory: float  # GiB
    flops: float  # bfloat16, dense
    bandwidth: float  # bytes, of its memory
    link: float  # bytes, to a device of its node, one way
    network: float  # bytes, to one of another node


DEVICES: Mapping[str, Device] = {
    "h100_80gb": Device(80, 989e12, 3.35e12, 450e9, 50e9),
    "h200": Device(141, 989e12, 4.8e12, 450e9, 50e9),
    "b200": Device(180, 2250e12, 8.0e12, 900e9, 50e9),
    "a100_80gb": Device(80, 312e12, 2.04e12, 300e9, 25e9),
    "a100_40gb": Device(40, 312e12, 1.56e12, 300e9, 25e9),
    "l40s": Device(48, 362e12, 0.86e12, 32e9, 12.5e9),
}

EFFICIENCY = {"training": 0.4, "optimizer": 0.4, "memory": 0.7, "link": 0.7}
"""Shares of a device's rates that long runs are known to reach; not measured here."""


@dataclass(frozen=True)
class Shape:
    """A decoder of Qwen3's kind."""

    hidden: int
    heads: int
    kv_heads: int
    head: int
    wide: int
    layers: int
    vocab: int = 151_936
    tied: bool = False

    @property
    def matrices(self) -> list[tuple[int, int, int, int]]:
        """(rows, cols, heads, head axis) of the matrices of a layer."""
        q, kv = self.heads * self.head, self.kv_heads * self.head
        attention = [(q, self.hidden, self.heads, 0), (kv, self.hidden, self.kv_heads, 0)]
        attention += [(kv, self.hidden, self.kv_heads, 0), (self.hidden, q, self.heads, 1)]
        return [*attention, *[(self.wide, self.hidden, 1, 0)] * 2, (self.hidden, self.wide, 1, 0)]

    @property
    def layer(self) -> int:
        """Weights of a layer's matrices; norms do not count."""
        return sum(rows * cols for rows, cols, _, _ in self.matrices)

    @property
    def embeddings(self) -> int:
        """Weights that get AdamW."""
        return self.vocab * self.hidden * (1 if self.tied else 2)

    @property
    def weights(self) -> int:
        """Of the model."""
        return self.layers * self.layer + self.embeddings


SHAPES: Mapping[str, Shape] = {
    "qwen3_0.6b": Shape(1024, 16, 8, 128, 3072, 28, tied=True),
    "qwen3_1.7b": Shape(2048, 16, 8, 128, 6144, 28, tied=True),
    "qwen3_4b": Shape(2560, 32, 8, 128, 9728, 36, tied=True),
    "qwen3_8b": Shape(4096, 32, 8, 128, 12288, 36),
    "qwen3_14b": Shape(5120, 40, 8, 128, 17408, 40),
    "qwen3_32b": Shape(5120, 64, 8, 128, 25600, 64),
}


def shape_of(model: str) -> Shape:
    """By name, or from the `config.json` of a local folder.

    Raises:
        ConfigError: naming the nearest models, or the key that the folder lacks.
    """
    if model in SHAPES:
        return SHAPES[model]
    file = Path(model).expanduser() / "config.json"
    if not file.is_file():
        raise ConfigError(f"model={model}: no shapes are known; {nearest(model, SHAPES)}; or a folder with config.json")
    config = json.loads(file.read_text(encoding="utf-8"))
    try:
        heads, hidden = config["num_attention_heads"], config["hidden_size"]
        return Shape(
            hidden, heads, config.get("num_key_value_heads", heads), config.get("head_dim") or hidden // heads,
            config["intermediate_size"], config["num_hidden_layers"], config["vocab_size"],
            bool(config.get("tie_word_embeddings", False)),
        )  # fmt: skip
    except KeyError as error:
        raise ConfigError(f"model={model}: its config.json has no {error.args[0]}, which a dense decoder has") from None


@dataclass(frozen=True)
class Workload:
    """What a step is made of, and how it is shared."""

    gpus: int
    sharding: Literal["ddp", "fsdp2"] = "fsdp2"
    per_head: bool = True
    elementwise: bool = False  # AdamW everywhere
    prompts: int = 128  # per step
    samples: int = 8  # per prompt
    length: int = 2048  # tokens of prompt and completion
    micro_batch: int = 1
    engine: Literal["transformers", "vllm"] = "vllm"


@dataclass(frozen=True)
class DevicePlan:
    """Of one device: bytes by item, bytes sent and seconds of a step by part."""

    memory: dict[str, float]
    sent: dict[str, float]
    seconds: dict[str, float]
    problems: list[str]

    @property
    def peak(self) -> float:
        """Bytes; rollouts and the backward pass come one after the other."""
        working = self.memory["activations"] + self.memory["logits"]
        fixed = sum(size for name, size in self.memory.items() if name not in ("activations", "logits", "rollouts"))
        return fixed + max(working, self.memory["rollouts"])


def multiplications(rows: int, cols: int, heads: int, axis: int, steps: int = 5) -> float:
    """Floating-point operations of Newton-Schulz on a matrix, two for a multiply-add."""
    rows, cols = (rows // heads, cols) if axis == 0 else (rows, cols // heads)
    short, long = min(rows, cols), max(rows, cols)
    return heads * steps * (4.0 * short**2 * long + 2.0 * short**3)


def optimizer_bytes(shape: Shape, load: Workload) -> float:
    """What a rank sends in a step of the optimizer, in the mean over ranks: see `rlspec/optim/sharding`."""
    if load.elementwise or load.gpus == 1:
        return 0.0
    total = 0.0
    for rows, cols, heads, axis in shape.matrices:
        if load.sharding == "ddp":
            total += 4.0 * rows * cols * (load.gpus - 1)
            continue
        cut = heads if load.per_head else 1
        chunk = -(-rows // load.gpus)
        local = axis == 0 and cut > 1 and chunk % (rows // cut) == 0
        total += 0.0 if local else 2 * 4.0 * rows * cols * (load.gpus - 1) / load.gpus
    return shape.layers * total / load.gpus


def optimizer_operations(shape: Shape, load: Workload) -> float:
    """Floating-point operations of a rank in a step of the optimizer, in the mean."""
    if load.elementwise:
        return 0.0
    layer = sum(
        multiplications(rows, cols, heads if load.per_head else 1, axis) for rows, cols, heads, axis in shape.matrices
    )
    return shape.layers * layer / load.gpus


def plan(shape: Shape, load: Workload, device: Device) -> DevicePlan:
    """Memory, bytes and times of one device."""
    memory = _memory(shape, load)
    sent = {"optimizer": optimizer_bytes(shape, load), "training": _training_bytes(shape, load)}
    link = (device.link if load.gpus <= PER_NODE else device.network) * EFFICIENCY["link"]
    completions = math.ceil(load.prompts * load.samples / load.gpus)
    compute = 8 * shape.weights * completions * load.length / (device.flops * EFFICIENCY["training"])
    bandwidth = device.bandwidth * EFFICIENCY["memory"]
    products = optimizer_operations(shape, load) / (device.flops * EFFICIENCY["optimizer"])
    held = shape.weights / (load.gpus if load.sharding == "fsdp2" else 1)
    seconds = {
        "optimizer": max(products, sent["optimizer"] / link) + 5 * 4 * held / bandwidth,
        "training": max(compute, sent["training"] / link),
        "rollouts": load.length * (2 * shape.weights + completions * load.length / 2 * _cache(shape)) / bandwidth,
    }
    result = DevicePlan(memory, sent, seconds, [])
    result.problems.extend(_problems(result, shape, load, device))
    return result


def _cache(shape: Shape) -> int:
    """Bytes of the key-value cache per token."""
    return 2 * 2 * shape.layers * shape.kv_heads * shape.head


def _memory(shape: Shape, load: Workload) -> dict[str, float]:
    share = load.gpus if load.sharding == "fsdp2" else 1
    matrices, embeddings = shape.layers * shape.layer, shape.embeddings
    tokens = load.micro_batch * load.length
    completions = math.ceil(load.prompts * load.samples / load.gpus)
    gathered = 4 * max(2 * shape.layer, embeddings) if share > 1 else 0
    largest = max(rows * cols for rows, cols, _, _ in shape.matrices)
    whole = 4 * shape.weights * (1 - 1 / share)  # recipes sample with whole float32 weights
    rollouts = whole + completions * load.length * _cache(shape) if load.engine == "transformers" else 0.0
    width = 4 * shape.hidden + (3 * shape.heads + 4 * shape.kv_heads) * shape.head + 4 * shape.wide
    return {
        "weights": 4 * shape.weights / share,
        "gradients": 4 * shape.weights / share,
        "optimizer": ((8 if load.elementwise else 4) * matrices + 8 * embeddings) / share,
        "gathered layers": gathered,
        "optimizer's workspace": 0.0 if load.elementwise else 6 * 4 * max(largest, 2**25),
        "activations": 2.0 * tokens * (shape.layers * shape.hidden + width),
        "logits": 8.0 * tokens * shape.vocab,
        "rollouts": rollouts,
    }


def _training_bytes(shape: Shape, load: Workload) -> float:
    """Of a step: weights twice and gradients once per micro-batch, in float32, under FSDP2; gradients under DDP."""
    share = (load.gpus - 1) / load.gpus
    if load.sharding == "ddp":
        return 2 * 4.0 * shape.weights * share
    passes = math.ceil(load.prompts * load.samples / load.gpus / load.micro_batch)
    return passes * 3 * 4.0 * shape.weights * share


def _problems(made: DevicePlan, shape: Shape, load: Workload, device: Device) -> list[str]:
    """What does not fit, or is slow, and what to change."""
    found, available = [], 0.94 * device.memory * GIB
    if made.peak > available:
        largest = max(made.memory, key=lambda name: made.memory[name])
        remedies = {
            "rollouts": "engine=vllm (a server, rollout.engine=vllm), which samples with weights of its own",
            "logits": "micro_batch=1 or a smaller length; TRL's trainer.use_liger_kernel=true never builds them",
            "activations": "a smaller length or micro_batch",
        }
        remedy = "sharding=fsdp2" if load.sharding == "ddp" else f"gpus={_enough(shape, load, available)} or LoRA"
        found.append(
            f"does not fit: {made.peak / GIB:.0f} GiB of {device.memory:g}, {largest} takes "
            f"{made.memory[largest] / GIB:.0f}; use {remedies.get(largest, remedy)}"
        )
    passes = math.ceil(load.prompts * load.samples / load.gpus / load.micro_batch)
    link = (device.link if load.gpus <= PER_NODE else device.network) * EFFICIENCY["link"]
    if load.gpus > 1 and passes > 1 and made.seconds["training"] <= made.sent["training"] / link:
        found.append(
            f"training waits for weights, which {passes} micro-batches gather anew: raise micro_batch, where memory "
            "allows it"
        )
    if (load.prompts * load.samples) % load.gpus:
        found.append(
            f"{load.prompts} prompts x {load.samples} samples do not divide among {load.gpus} devices: some wait"
        )
    if load.per_head and not load.elementwise and shape.heads % load.gpus and load.gpus > 1:
        found.append(
            f"{shape.heads} heads do not divide by {load.gpus} devices: q, k and v are exchanged too; right, not local"
        )
    elif load.per_head and not load.elementwise and shape.kv_heads % load.gpus and load.gpus > 1:
        found.append(
            f"{shape.kv_heads} key-value heads do not divide by {load.gpus} devices: k and v are exchanged, q is not"
        )
    return found


def _enough(shape: Shape, load: Workload, available: float) -> int:
    """The least power of two of devices on which the static part fits twice."""
    gpus = load.gpus
    while gpus < 4096 and 20 * shape.weights / gpus > available / 2:
        gpus *= 2
    return max(gpus, 2 * load.gpus)


def describe(made: DevicePlan, shape: Shape, load: Workload, name: str, hardware: str) -> str:
    """The plan in lines."""
    lines = [
        f"{name}: {shape.weights / 1e9:.2f} billion weights on {load.gpus} x {hardware}, {load.sharding}, "
        f"{load.prompts} prompts x {load.samples} samples of {load.length} tokens, rollouts by {load.engine}",
        "memory per device (GiB)",
        *(f"  {item:22} {size / GIB:8.1f}" for item, size in made.memory.items() if size),
        f"  {'peak':22} {made.peak / GIB:8.1f}",
        "sent per device and step (GiB)",
        *(f"  {item:22} {size / GIB:8.2f}" for item, size in made.sent.items()),
        "seconds per step",
        *(f"  {item:22} {value:8.2f}" for item, value in made.seconds.items()),
        f"  {'all':22} {sum(made.seconds.values()):8.2f}",
    ]
    return "\n".join([*lines, *(f"note: {line}" for line in made.problems)]) + "\n"


def as_values(made: DevicePlan) -> dict[str, Any]:
    """For a file."""
    return {"memory": made.memory, "sent": made.sent, "seconds": made.seconds, "problems": made.problems}
