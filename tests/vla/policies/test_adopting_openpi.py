"""openpi's pi0.5 becomes one of our policies: tiny, in the layout and with the names of its own folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_pi05 import batch, make

from rlspec.adopt import main
from rlspec.errors import CheckpointError, DataError
from rlspec.vla.evaluation.policy_actor import PolicySource, load_policy
from rlspec.vla.policies.openpi import Checkpoint, adopt

STATS = {
    name: {"mean": [0.1] * size, "std": [0.5] * size, "q01": [-2.0] * size, "q99": [2.0] * size}
    for name, size in (("state", 8), ("actions", 7))
}


def write(folder: Path, tensors: dict[str, torch.Tensor], stats: dict[str, Any] | None = None) -> Path:
    """A folder as openpi's converter leaves it, with the assets of its run."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"action_dim": 32, "action_horizon": 8, "precision": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "assets" / "physical-intelligence" / "libero").mkdir(parents=True, exist_ok=True)
    file = folder / "assets" / "physical-intelligence" / "libero" / "norm_stats.json"
    file.write_text(json.dumps({"norm_stats": stats or STATS}))
    return folder


@pytest.fixture
def folder(tmp_path: Path, tiny_pi05: dict[str, Any]) -> Path:
    """Names without `model.`, and the tied table of words under the output head's name alone."""
    tensors = {name.removeprefix("model."): value.clone() for name, value in make(tiny_pi05).state_dict().items()}
    words = "paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    tensors["paligemma_with_expert.paligemma.lm_head.weight"] = tensors.pop(words)
    return write(tmp_path / "openpi", tensors)


def test_the_adopted_policy_acts_as_the_one_that_was_given(
    folder: Path, tmp_path: Path, tiny_pi05: dict[str, Any]
) -> None:
    given = Checkpoint.read(folder, None, state=None, action=None)
    assert (given.sizes, given.settings["chunk_size"]) == ({"observation.state": 8, "action": 7}, 8)
    sizes = {key: tiny_pi05[key] for key in ("image_resolution", "tokenizer_max_length", "num_inference_steps")}
    adopt(given, tmp_path / "ours", cameras=["external"], **sizes)
    original = make(tiny_pi05).eval()
    actor = load_policy(PolicySource(str(tmp_path / "ours"), device="cpu"))
    policy: Any = actor.policy
    noise = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(3))
    expected = original.predict_action_chunk(batch(), noise=noise)
    assert torch.equal(policy.predict_action_chunk(batch(), noise=noise), expected)
    back = actor.postprocessor(expected[0])
    torch.testing.assert_close(back, 2.0 * expected[0].cpu(), msg="unnormalised by q01 and q99")


def test_what_is_no_pi05_in_pytorch_is_one_line(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    one = torch.zeros(1)
    cases = {
        "lora": ({**tensors, "paligemma_with_expert.q.lora_a": one}, "LoRA factors that are not merged"),
        "pi0": ({**tensors, "state_proj.weight": one}, "a pi0, which has state_proj"),
        "other": ({"backbone.weight": one}, "it lacks time_mlp_in"),
    }
    for name, (content, said) in cases.items():
        with pytest.raises(CheckpointError, match=said):
            Checkpoint.read(write(tmp_path / name, content), None, state=None, action=None)
    (tmp_path / "jax" / "params").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"weights of JAX; convert it first by openpi's examples/convert_jax"):
        Checkpoint.read(tmp_path / "jax", None, state=None, action=None)
    with pytest.raises(CheckpointError, match=r"statistics of 7 numbers of action, and 9 are wanted"):
        Checkpoint.read(folder, None, state=None, action=9)
    (folder / "assets" / "norm_stats.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"statistics below assets: assets/norm_stats.json, .*norm_stats=FILE"):
        Checkpoint.read(folder, None, state=None, action=None)


def test_statistics_are_cut_to_the_robots_numbers(folder: Path) -> None:
    padded = {name: {kind: values + [0.0] * 24 for kind, values in each.items()} for name, each in STATS.items()}
    write(folder, load_file(folder / "model.safetensors"), padded)
    given = Checkpoint.read(folder, None, state=8, action=7)
    assert np.allclose(given.stats["action"]["q99"], [2.0] * 7) and len(given.stats["observation.state"]["std"]) == 8


def test_a_configs_sizes_and_precision_are_taken_by_either_name_of_its_file(folder: Path) -> None:
    """And names of weights with `model.` before them, as a policy has them, or without."""
    prefixed = {f"model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    (write(folder, prefixed) / "config.json").unlink()
    content = {"action_dim": 32, "action_horizon": 50, "precision": "bfloat16", "paligemma_variant": "gemma_2b"}
    (folder / "configs.json").write_text(json.dumps(content))
    assert Checkpoint.read(folder, None, state=None, action=None).settings == {
        "chunk_size": 50, "n_action_steps": 10, "max_action_dim": 32, "dtype": "bfloat16",
        "paligemma_variant": "gemma_2b",
    }  # fmt: skip


def test_statistics_of_unequal_lengths_are_one_line(folder: Path) -> None:
    """Cut and padded by hand, as users do."""
    for state in ({**STATS["state"], "std": [0.5] * 32}, {**STATS["state"], "q01": [[1.0], [1.0, 2.0]]}):
        write(folder, load_file(folder / "model.safetensors"), {**STATS, "state": state})
        with pytest.raises(DataError, match=r"has mean 8, std 32, q01 8, q99 8 numbers|no norm_stats.json of openpi"):
            Checkpoint.read(folder, None, state=None, action=None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["source=openvla_oft", "path=.", "out=x"],
            "source=openvla_oft: not possible: its Llama is changed to see both",
        ),
        (["source=vla_adapter", "path=.", "out=x", "state=8"], "state=8: of source=openpi alone; drop it"),
        (["source=openpi", "path=.", "out=x", "dataset=a"], "dataset=a: of source=vla_adapter alone; drop it"),
        (["source=vla_adapter", "path=.", "out=x", "cameras=a"], "cameras=a: VLA-Adapter sees two, the scene's"),
        (["source=openpi", "path=nowhere", "out=x"], "path=nowhere: no such folder"),
        (["source=openpi", "path=.", "out=."], "out=.: there is something; choose another folder"),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_is_read(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]
