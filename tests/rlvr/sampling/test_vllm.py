"""Rollouts and evaluations by a server that speaks vLLM's protocol, through the recipe: weights, ratios, faults."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from requests.adapters import HTTPAdapter
from vllm_stand_in import StandIn, connect

from rlspec.config.load import load_recipe
from rlspec.errors import ConfigError, ServerError
from rlspec.rlvr.models.loading import build_model
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer
from rlspec.rlvr.run import run_recipe
from rlspec.rlvr.sampling.generation import Sampling
from rlspec.rlvr.sampling.vllm import explained, sampler_of
from rlspec.rlvr.training.trainers import SpectralGMPOTrainer

sys.path.insert(0, str(Path(__file__).parents[2] / "end_to_end"))

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


class Engine:
    """What `trainer.vllm_generation` is asked: it answers a prompt by its own first token, and notes the rest."""

    mode = "server"
    temperature = top_p = top_k = min_p = repetition_penalty = max_completion_length = structured_outputs_regex = 0.0
    generation_kwargs: dict[str, Any] = {}

    def __init__(self) -> None:
        self.syncs, self.asked = 0, list[tuple[list[list[int]], int, float]]()

    def sync_weights(self) -> None:
        self.syncs += 1

    def generate(self, *, prompts: list[list[int]], images: None, num_generations: int) -> Any:
        self.asked.append((prompts, num_generations, self.temperature))
        return prompts, [prompt[:1] for prompt in prompts], None, None


def ask(
    patch: pytest.MonkeyPatch, texts: list[str], others: list[tuple[int, int]], temperature: float | None = 0.5
) -> tuple[list[tuple[int, list[int]]], Engine]:
    """As one of several processes, of which the others have as many prompts, and as many copies of each."""
    patch.setattr("rlspec.rlvr.sampling.vllm.gather_object", lambda mine: [*mine, *others])
    trainer = SimpleNamespace(
        vllm_generation=Engine(),
        _last_loaded_step=-1,
        state=SimpleNamespace(global_step=3),
        processing_class=build_byte_tokenizer(),
        args=SimpleNamespace(vllm_server_base_url="http://x"),
    )
    sample = sampler_of(lambda: trainer)
    for _ in range(2):
        found = list(sample(None, build_byte_tokenizer(), texts, Sampling(4, temperature), batch_size=8, seed=0))
    return found, trainer.vllm_generation


def test_processes_with_fewer_prompts_ask_for_as_many_as_the_others_and_keep_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, engine = ask(monkeypatch, ["a", "b"], [(3, 1)])
    assert found == [(0, [ord("a")]), (1, [ord("b")])]
    assert [len(prompts) for prompts, *_ in engine.asked] == [3, 3]
    assert engine.syncs == 1  # the weights of a step are sent once
    found, engine = ask(monkeypatch, [], [(2, 2)])
    assert (found, len(engine.asked[0][0])) == ([], 2)
    assert ask(monkeypatch, [], [(0, 0)])[1].asked == []


@pytest.mark.parametrize(
    ("texts", "others", "temperature", "copies"),
    [
        (list("aaaabb"), [], 0.5, 2),
        (list("aaaabbbb"), [(4, 2)], 0.5, 2),
        (list("aaa"), [(4, 2)], 0.5, 1),
        (list("aaaa"), [(0, 0)], 0.5, 4),
        (list("aabb"), [], None, 1),
    ],
)
def test_neighbours_that_are_the_same_prompt_are_asked_for_at_once_where_all_processes_can(
    texts: list[str],
    others: list[tuple[int, int]],
    temperature: float | None,
    copies: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, engine = ask(monkeypatch, texts, others, temperature)
    assert engine.asked[0][1:] == (copies, temperature or 0.0)
    assert [row for _, row in found] == [[ord(text)] for text in texts]


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            RuntimeError("The vLLM server at x has no\nweight-transfer engine."),
            ServerError,
            r"refuses \(The vLLM .* no w",
        ),
        (Exception("Request failed: 500, no"), ServerError, r"refuses \(500, no\); start it with"),
        (NotImplementedError("no such\ndevice"), ConfigError, "^rollout.engine=vllm: no such device$"),
        (RuntimeError("something else"), RuntimeError, "^something else$"),
    ],
)
def test_what_trls_client_complains_of_is_one_line_and_other_faults_stay(
    error: Exception, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message), explained(SimpleNamespace(vllm_server_base_url="http://x")):
        raise error
