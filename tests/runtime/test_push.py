"""A finished run's card says what it is, and its upload leaves nothing behind that somebody else could need."""

from __future__ import annotations

import base64
import json
import shlex
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from huggingface_hub.cli import hf

from rlspec import train
from rlspec.checkpoint import CARD, staged_folder, verify_checkpoint
from rlspec.config.load import load_any_recipe
from rlspec.display import Display
from rlspec.errors import ConfigError, UserError
from rlspec.run_directory import RunDirectory
from rlspec.runtime.card import CardRow, Origin, Proportion, licence_of, write_cards
from rlspec.runtime.push import check_push, push
from rlspec.runtime.starting import Run


class Hub(BaseHTTPRequestHandler):
    """What an upload asks of the hub's API."""

    status: dict[str, int] = {}  # answers other than 200, by the last part of the path
    made: dict[str, Any] = {}
    files: dict[str, str] = {}

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if "create" in self.status:  # so there is none
            self._answer({"error": "Repository not found"}, 404)
        else:
            self._answer({"id": "me/model", "sha": "0" * 40, "siblings": []})

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = next(each for each in ("create", "validate-yaml", "preupload", "commit") if each in self.path)
        if kind in self.status:
            self._answer({"error": f"{kind} is not for you"}, self.status[kind])
        elif kind == "create":
            self.made.update(json.loads(text), token=self.headers["Authorization"])
            self._answer({"url": f"http://{self.headers['Host']}/me/model"})
        elif kind == "preupload":
            asked = [each["path"] for each in json.loads(text)["files"]]
            answers = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]
            self._answer({"files": answers})
        elif kind == "commit":
            for line in map(json.loads, text.decode().splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"]).decode()
            self._answer(
                {
                    "success": True,
                    "commitOid": "1" * 40,
                    "commitUrl": f"http://{self.headers['Host']}/me/model/commit/1",
                }
            )
        else:
            self._answer({"errors": [], "warnings": []})

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    for kept in (Hub.status, Hub.made, Hub.files):
        kept.clear()
    yield Hub
    server.shutdown()


ORIGIN = Origin("transformers", "text-generation", "org/base", None, "`sums`", ["org/sums"], "load(FOLDER)")
MEASURED = [CardRow("sampled pass@1", "sums", Proportion(0.25, 0.2, 0.3), Proportion(0.5, 0.44, 0.56))]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """With a checkpoint, in which a library has left a card of its own."""
    recipe = load_any_recipe(["recipe=grpo_math", f"output_dir={tmp_path}", "run=mine"])
    directory = RunDirectory(tmp_path / "mine")
    directory.path.mkdir()
    (directory.path / "symmetry.md").write_text("| role | rule |\n")
    with staged_folder(directory.checkpoints / "checkpoint-3", metadata={"step": 3}) as folder:
        for name in ("model.safetensors", "config.json", "recipe.yaml", "optimizer.pt", "rng_state.pth", CARD):
            (folder / name).write_text(name)
        for name in (
            "training_args.bin",
            "scheduler.pt",
            "trainer_state.json",
            "rollouts_0.pt",
            "reference.pt",
            "training_state.pt",
            "scaler.pt",
        ):
            (folder / name).write_text(name)
    return Run(recipe, directory, None, None, Display("plain"))  # type: ignore[arg-type]


def write(run: Run, origin: Origin = ORIGIN) -> tuple[str, dict[str, Any]]:
    folder = write_cards(run, origin, MEASURED, status="finished", steps=3)
    assert folder is not None
    text = (folder / CARD).read_text()
    return text, yaml.safe_load(text.split("---")[1])


def test_a_card_says_what_made_the_weights_what_they_reach_and_whose_licence_holds(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlspec.runtime.card.licence_of", lambda *_: "apache-2.0")
    text, front = write(run)
    assert front["license"] == "apache-2.0" and front["base_model"] == "org/base" and front["datasets"] == ["org/sums"]
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 0.5 and result["metrics"][0]["args"]["ci95"] == [0.44, 0.56]
    for part in (
        "| sums | sampled pass@1 | 25.0% [20.0%, 30.0%] | 50.0% [44.0%, 56.0%] |",
        "recipe `grpo_math`: grpo on `sums`, optimizer `muon_two_rates` at learning rate 0.0001, seed 0",
        "| role | rule |",
        "Of the base, `org/base`: apache-2.0.",
        "python -m rlspec.train recipe=recipe.yaml",
        "load(FOLDER)",
    ):
        assert part in text, part
    # The card comes after the checkpoint, which stays whole, also where the library's own card was listed.
    checkpoint = run.directory.checkpoints / "checkpoint-3"
    assert CARD not in verify_checkpoint(checkpoint)["files"]


def test_the_best_weights_have_a_card_without_numbers_that_are_of_others(run: Run) -> None:
    with staged_folder(run.directory.best, metadata={"step": 2}):
        pass
    write(run)
    text = (run.directory.best / CARD).read_text()
    assert "the best weights of the run by its evaluations: those of step 2." in text
    assert "None were measured." in text and "50.0%" not in text


def test_who_makes_the_weights_again_does_not_upload_them_to_where_these_are(run: Run) -> None:
    assert "push" not in write(run)[0]
    pushed = replace(run, recipe=run.recipe.model_copy(update={"push": "me/model"}))
    assert " push=null\n" in write(pushed)[0]


def test_a_local_base_is_named_without_its_place_and_its_licence_is_read_off_its_card(run: Run, tmp_path: Path) -> None:
    base = tmp_path / "secret" / "base"
    base.mkdir(parents=True)
    (base / CARD).write_text("---\nlicense: mit\n---\n# base\n")
    text, front = write(run, Origin("transformers", "text-generation", str(base), None, "`sums`"))
    assert "secret" not in text and "Of the base, `base`: mit." in text and "base_model" not in front
    (base / CARD).write_text("no front matter")
    assert licence_of(str(base), None) is None
    assert "not known; look it up" in write(run, Origin("transformers", "x", str(base), None, "`sums`"))[0]
    assert "There is no base model" in write(run, Origin("transformers", "x", None, None, "`sums`"))[0]


def test_an_upload_holds_what_loads_and_explains_the_weights_and_not_what_a_resume_needs(
    hub: type[Hub], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    write(run, Origin("transformers", "text-generation", None, None, "`sums`"))
    push(run.directory.checkpoints / "checkpoint-3", "me/model", run.display)
    assert set(hub.files) == {"model.safetensors", "config.json", "recipe.yaml", CARD}
    assert "sampled pass@1" in hub.files[CARD]
    assert hub.made["visibility"] == "private" and hub.made["token"] == "Bearer hf_secret"
    assert "/me/model (private" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "status", "reason"),
    [
        ("create", 401, "does not accept the token"),
        ("create", 403, "the token may not write there"),
        ("commit", 500, "500"),
        ("preupload", 404, "or there is no such owner"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line_that_says_where_the_run_is_and_how_to_try_again(
    kind: str, status: int, reason: str, hub: type[Hub], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda _: None, time=time.time))
    hub.status[kind] = status
    folder = run.directory.checkpoints / "checkpoint-3"
    with pytest.raises(UserError, match=reason) as caught:
        push(folder, "me/model", run.display)
    said = str(caught.value)
    assert "\n" not in said
    assert f"the run is whole in {folder}" in said
    # The command that it names uploads the same.
    hub.status.clear()
    _, *arguments = shlex.split(said.partition("try again with: ")[2])
    hf.app(arguments, standalone_mode=False)
    assert set(hub.files) == {"model.safetensors", "config.json", "recipe.yaml", CARD}
    assert hub.made["visibility"] == "private"


def test_without_a_network_it_is_said_in_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with pytest.raises(UserError, match="push=me/model: not uploaded: .*unreachable") as caught:
        push(run.directory.checkpoints / "checkpoint-3", "me/model", run.display)
    assert "\n" not in str(caught.value)


def test_what_an_upload_lacks_is_said_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rlspec.hub.get_token", lambda: None)
    monkeypatch.setattr("rlspec.train._runner", lambda **_: pytest.fail("the run began"))
    assert train.main(["recipe=grpo_math", "push=me/model"]) == 2
    assert "push=me/model: no token of the hub; set HF_TOKEN" in capsys.readouterr().err
    check_push(None)
    for name in ("model", "me/model/x", "me/mo del", "https://huggingface.co/me/model"):
        with pytest.raises(ConfigError, match="OWNER/NAME"):
            load_any_recipe(["recipe=vla_franka", f"push='{name}'"])
