"""Rollouts and evaluations by a server that speaks vLLM's protocol, through the recipe: weights, ratios, faults."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from requests.adapters import HTTPAdapter
from vllm_stand_in import StandIn, connect

from rlspec.config.load import load_recipe
from rlspec.errors import ConfigError, ServerError
from rlspec.rlvr.models import build_model
from rlspec.rlvr.run import run_recipe
from rlspec.rlvr.tokenizer import build_byte_tokenizer
from rlspec.rlvr.trainers import SpectralGMPOTrainer

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))

SMALL = [
    "optim=muon",
    "optim.lr=0.01",
    "rollout.engine=vllm",
    "trainer.vllm_mode=server",
    "trainer.max_steps=2",
    "evaluation.every=null",
    "checkpoints.every=null",
    "report.tensorboard=false",
    "reward=child_run:digits",  # even random weights earn different rewards, so that every step moves them
]
SHARPNESS = 1.2


def policy(recipe: Any) -> Any:
    return build_model(architecture=recipe.model.architecture, tokenizer=build_byte_tokenizer(), seed=1)


def recipe_of(folder: Path, name: str, url: str, *overrides: str) -> Any:
    where = [f"output_dir={folder}", "run=run", f"trainer.vllm_server_base_url={url}"]
    return load_recipe([f"recipe={name}", *SMALL, *where, *overrides])


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StandIn, Path, list[dict[str, Any]]]]:
    """A run of GMPO by the stand-in: the server, the run's folder, and what every update was given."""
    folder, updates = tmp_path_factory.mktemp("vllm"), []
    with pytest.MonkeyPatch.context() as patch:
        loss = SpectralGMPOTrainer._compute_loss

        def noted(self: Any, model: Any, inputs: dict[str, Any]) -> Any:
            updates.append({key: value for key, value in inputs.items() if isinstance(value, torch.Tensor)})
            return loss(self, model, inputs)

        patch.setattr(SpectralGMPOTrainer, "_compute_loss", noted)
        recipe = recipe_of(folder, "debug_gmpo", "http://127.0.0.1:1")
        server = StandIn(policy(recipe), sharpness=SHARPNESS)
        connect(patch, server)
        assert run_recipe(recipe_of(folder, "debug_gmpo", server.url)) == 0
        yield server, folder / "run", updates
        server.stop()


def test_all_completions_of_a_run_are_the_servers(told: tuple[StandIn, Path, list[dict[str, Any]]]) -> None:
    server, _, updates = told
    answers = [row for _, _, row, _ in server.given]
    for inputs in updates:
        for row, mask in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True):
            length = int(mask.sum())
            assert any(answer[:length] == row[:length].tolist() for answer in answers)


def test_the_server_has_the_weights_of_the_step(told: tuple[StandIn, Path, list[dict[str, Any]]]) -> None:
    from safetensors.torch import load_file

    server, run, _ = told
    last = load_file(run / "checkpoints" / "checkpoint-2" / "model.safetensors")
    for name, value in last.items():
        assert torch.equal(server.syncs[-1][name], value), name
    assert any(not torch.equal(server.syncs[0][name], value) for name, value in last.items())
    order = [path for path in server.paths if "weight" in path or "completions" in path or "cache" in path]
    first = ["/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update"]
    assert order[:6] == [*first, "/reset_prefix_cache", "/v1/completions"]


def test_evaluations_ask_the_server_greedily_and_at_random(told: tuple[StandIn, Path, list[dict[str, Any]]]) -> None:
    server, run, _ = told
    for label, asked in (("before", server.asked[:2]), ("after", server.asked[-2:])):
        assert [(each["temperature"], each["n"], len(each["prompt"])) for each in asked] == [(0.0, 1, 4), (1.0, 2, 4)]
        assert all(each["top_p"] == 1.0 and "seed" in each for each in asked)
        rows = (run / "evaluations" / f"{label}-arithmetic.jsonl").read_text().splitlines()
        assert len(rows) == 4 * (1 + 2)
    assert all("seed" not in each and each["n"] == 4 for each in server.asked[2:-2])  # rollouts are not repeated


def test_gmpo_corrects_by_the_ratio_of_trainer_and_server(told: tuple[StandIn, Path, list[dict[str, Any]]]) -> None:
    """The ratio of a sequence, from the server's own words and a model with the weights that it had."""
    server, run, updates = told
    known = {tuple(row): (weights, prompt, logps) for weights, prompt, row, logps in server.given}
    seen = 0
    for inputs in updates:  # two, of one block of rollouts
        for row, mask, ratio in zip(
            inputs["completion_ids"], inputs["completion_mask"], inputs["importance_sampling_ratio"], strict=True
        ):
            length = int(mask.sum())
            found = next(value for key, value in known.items() if list(key[:length]) == row[:length].tolist())
            weights, prompt, logps = found
            server.model.load_state_dict(server.syncs[weights], strict=False)
            with torch.no_grad():
                scores = server.model(torch.tensor([[*prompt, *row[:length].tolist()]])).logits[0].log_softmax(-1)
            own = scores[len(prompt) - 1 : -1].gather(1, row[:length, None]).sum()
            product = torch.exp(own - sum(logps[:length]))
            expected = product if product <= 3.0 else torch.tensor(0.0)  # TRL's sequence_mask and its bound
            torch.testing.assert_close(ratio.squeeze(), expected, rtol=1e-3, atol=1e-5)
            seen += 1
    assert seen == 16
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    gaps = [row.get("sampling/sampling_logp_difference/mean") for row in rows if "loss" in row]
    assert len(gaps) == 2
    assert gaps[0] > 0
    assert gaps[1] is None  # the second step has the rollouts of the first


def test_an_engine_that_computes_alike_has_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    quick = ["evaluation.before=false", "evaluation.after=false", "trainer.max_steps=1"]
    server = StandIn(policy(recipe_of(tmp_path, "debug_grpo", "http://127.0.0.1:1")))
    connect(monkeypatch, server)
    assert run_recipe(recipe_of(tmp_path, "debug_grpo", server.url, *quick)) == 0
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["sampling/sampling_logp_difference/max"] < 1e-4
    assert row["sampling/importance_sampling_ratio/min"] == pytest.approx(1, abs=1e-3)
    assert "vllm log-prob gap " in capsys.readouterr().out
    server.stop()


def test_a_dead_server_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.generation.vllm_client import VLLMClient

    class Dying(StandIn):
        def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
            if path == "/v1/completions":
                raise ConnectionAbortedError
            return super().answer(path, body)

    quick = ["evaluation.before=false", "trainer.vllm_server_timeout=0"]
    server = Dying(policy(recipe_of(tmp_path, "debug_grpo", "http://127.0.0.1:1")))
    connect(monkeypatch, server)
    post = VLLMClient._post

    def once(client: Any, url: str, **kwargs: Any) -> Any:
        client.session.mount("http://", HTTPAdapter(max_retries=0))  # TRL's takes a minute over five tries
        return post(client, url, **kwargs)

    monkeypatch.setattr(VLLMClient, "_post", once)
    line = rf"rollout.engine=vllm: the server at {server.url} does not answer \(.*vllm serve.*resume=auto"
    with pytest.raises(ServerError, match=line):
        run_recipe(recipe_of(tmp_path, "debug_grpo", server.url, *quick))
    server.stop()
    with pytest.raises(ServerError, match=line):
        run_recipe(recipe_of(tmp_path / "never", "debug_grpo", server.url, *quick))


def test_a_server_whose_probabilities_are_not_those_it_draws_by_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = StandIn(policy(recipe_of(tmp_path, "debug_grpo", "http://127.0.0.1:1")), logprobs_mode="raw_logprobs")
    connect(monkeypatch, server)
    with pytest.raises(ConfigError, match=r"--logprobs-mode raw_logprobs, .*trainer.temperature=0.7, which biases"):
        run_recipe(recipe_of(tmp_path, "debug_grpo", server.url, "trainer.temperature=0.7"))
    server.stop()
