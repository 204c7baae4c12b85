"""LeRobot's commands in this process, a small dataset with images, and a pi0.5 that fits a test."""

from __future__ import annotations

import functools
import importlib
import logging
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from draccus.wrappers import docstring

CAMERAS = ("external", "wrist")
_describe = functools.cache(docstring.get_attribute_docstring)


@pytest.fixture
def lerobot(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`lerobot("train", *arguments)` runs lerobot-train in this process, cut off from the network.

    Its traces are removed afterwards.
    """
    from accelerate.state import AcceleratorState

    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:  # by which worker processes are started
            raise OSError("no network in tests")
        connect(self, address)

    def command(name: str, *arguments: str) -> None:
        main = importlib.import_module(f"lerobot.scripts.lerobot_{name}").main
        AcceleratorState._reset_state(True)
        section = "policy" if name == "train" else "env"
        monkeypatch.setattr(
            sys, "argv", [f"lerobot-{name}", f"--{section}.discover_packages_path=rlspec.vla", *arguments]
        )
        main()

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(docstring, "get_attribute_docstring", _describe)  # help texts, read from source every time
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield command
    root.handlers[:] = handlers
    root.setLevel(level)
    AcceleratorState._reset_state(True)


@pytest.fixture(scope="session")
def images_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes of noise with the Franka environment's features at 64 pixels."""
    from lerobot.datasets import LeRobotDataset

    image = {"dtype": "image", "shape": (64, 64, 3), "names": ["height", "width", "channel"]}
    features: dict[str, Any] = {f"observation.images.{camera}": image for camera in CAMERAS}
    sizes = {"observation.state": 8, "action": 7}
    features |= {name: {"dtype": "float32", "shape": (size,), "names": None} for name, size in sizes.items()}
    folder, generator = tmp_path_factory.mktemp("images") / "data", np.random.default_rng(0)
    written = LeRobotDataset.create("local/images", fps=20, features=features, root=folder, use_videos=False)
    for _ in range(2):
        for _ in range(6):
            frame: dict[str, Any] = {
                f"observation.images.{camera}": generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                for camera in CAMERAS
            }
            frame |= {name: generator.normal(size=size).astype(np.float32) for name, size in sizes.items()}
            written.add_frame(frame | {"task": "pick up the red cube"})
        written.save_episode()
    written.finalize()
    return folder


@pytest.fixture(scope="session")
def tiny_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a vision-language model that SmolVLA takes for its own."""
    from tiny_smolvla import write_tiny_vlm

    return write_tiny_vlm(tmp_path_factory.mktemp("smolvlm"))


@pytest.fixture
def tiny_pi05(monkeypatch: pytest.MonkeyPatch, tiny_vlm: Path) -> dict[str, Any]:
    """pi0.5 shrunk by patches, with a byte tokenizer for PaliGemma's; returns fields of its config."""
    from lerobot.policies.pi05 import modeling_pi05 as module
    from lerobot.processor import tokenizer_processor
    from transformers import AutoTokenizer

    real = module.PaliGemmaForConditionalGenerationWithPiGemma
    expert = module.PiGemmaForCausalLM
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

    def small(config: Any) -> Any:
        for key, value in (vision | {"patch_size": 14, "projection_dim": 64}).items():
            setattr(config.vision_config, key, value)
        config.text_config.vocab_size, config.image_token_id = 512, 511
        return real(config)

    def small_expert(config: Any) -> Any:
        config.vocab_size = 512
        return expert(config)

    class Tokenizers:
        @staticmethod
        def from_pretrained(*_: Any, **__: Any) -> Any:
            return AutoTokenizer.from_pretrained(tiny_vlm)

    monkeypatch.setattr(module, "get_gemma_config", lambda _: module.GemmaConfig(64, 2, 128, 8, 1, 16))
    monkeypatch.setattr(module, "PaliGemmaForConditionalGenerationWithPiGemma", small)
    monkeypatch.setattr(module, "PiGemmaForCausalLM", small_expert)
    monkeypatch.setattr(tokenizer_processor, "AutoTokenizer", Tokenizers)
    return {
        "device": "cpu", "push_to_hub": False, "image_resolution": (56, 56), "tokenizer_max_length": 96,
        "chunk_size": 8, "n_action_steps": 4, "num_inference_steps": 2,
    }  # fmt: skip
