"""The command: arguments, the life of the process, TLS."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving_cases import PATIENCE, state_message

from rlspec.checkpoint import find_weights
from rlspec.deploy.policy.client import PolicyClient
from rlspec.deploy.probes import policy_server
from rlspec.errors import CheckpointError, ConfigError, ServerError
from rlspec.serve import ServeCommand, main
from rlspec.serving.choosing import built_in_policy
from rlspec.serving.settings import ServedPolicy, ServerSettings
from rlspec.vla.served import read_meaning

RECORD = {"action_space": "joint_velocity", "control_hz": 15.0, "execution_law": "droid_hybrid"}


@contextmanager
def process(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The server as a process, its address, and its lines so far."""
    command = [sys.executable, "-m", "rlspec.serve", "port=0", *arguments]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines: list[str] = []
    found = threading.Event()

    def read() -> None:
        assert running.stdout is not None
        for line in running.stdout:
            lines.append(line.rstrip())
            if "serving" in line:
                found.set()
        found.set()

    reader = threading.Thread(target=read)
    reader.start()
    try:
        assert found.wait(PATIENCE)
        address = re.search(r"wss?://\S+", "\n".join(lines))
        assert address, lines
        yield running, address[0], lines
    finally:
        running.kill()
        running.wait()
        reader.join()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_ends_it(number: signal.Signals, code: int) -> None:
    with process("policy=hold") as (running, url, lines):
        client = PolicyClient(url, timeout_s=PATIENCE)
        client.connect()
        actions = client.infer(state_message()).actions
        np.testing.assert_allclose(actions[:, :7], np.tile(np.linspace(-0.5, 0.5, 7), (16, 1)), rtol=1e-6)
        running.send_signal(number)
        assert running.wait(PATIENCE) == code
        with pytest.raises(ServerError):
            client.infer(state_message())
    assert any("1 answers" in line and "the server ends" in line for line in lines)


BUSY = """
import sys, torch
from rlspec.serving.builtin import HoldBatchPolicy
from rlspec.serving.choosing import built_in_policy
from rlspec.serving.run import serve_policy
from rlspec.serve import ServeCommand
from rlspec.serving.settings import ServerSettings
policy, matrix = built_in_policy(ServeCommand.read(["policy=hold"])), torch.randn(400, 400)
def infer(observations):
    print("busy", flush=True)
    for _ in range(400):
        matrix @ matrix
    return HoldBatchPolicy.infer(policy, observations)
policy.infer = infer
sys.exit(serve_policy(policy, ServerSettings(port=0)))
"""


def test_a_second_signal_ends_it_in_the_middle_of_an_inference() -> None:
    """Whose thread comes back from torch while the interpreter ends: the process died with SIGABRT."""
    running = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None
    try:
        address = next(match[0] for line in running.stdout if (match := re.search(r"ws://\S+", line)))
        client = PolicyClient(address, timeout_s=PATIENCE)
        client.connect()
        threading.Thread(target=lambda: pytest.raises(ServerError, client.infer, state_message())).start()
        assert any("busy" in line for line in running.stdout)
        running.send_signal(signal.SIGINT)
        assert any("a second signal ends at once" in line for line in running.stdout)
        running.send_signal(signal.SIGINT)
        _, complaints = running.communicate(timeout=PATIENCE)
    finally:
        running.kill()
    assert (running.returncode, complaints) == (130, "")


def test_a_token_from_a_file_and_no_torch(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a long secret\n")
    with process("policy=zeros", f"token_file={tmp_path / 'token'}") as (_, url, lines):
        with pytest.raises(ServerError, match="401"):
            PolicyClient(url, timeout_s=PATIENCE).connect()
        with PolicyClient(url, token="a long secret", timeout_s=PATIENCE) as client:
            assert not client.infer(state_message()).actions.any()
    assert not any("secret" in line for line in lines)


def test_built_in_policies_import_no_torch() -> None:
    program = (
        "import sys\nfrom rlspec.serving.choosing import built_in_policy\nimport rlspec.serving.run\n"
        "from rlspec.serve import ServeCommand\nbuilt_in_policy(ServeCommand.read(['policy=hold']))\n"
        "print(sorted({'torch', 'lerobot', 'PIL', 'pandas'} & {name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def certificate(folder: Path) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    cert, key = folder / "cert.pem", folder / "key.pem"
    names = "subjectAltName=IP:127.0.0.1"
    made = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test", "-addext", names]
    subprocess.run([openssl, *made, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


def test_tls_by_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what a client and the doctor say where it is not understood: never that nobody serves."""
    cert, key = certificate(tmp_path)
    with process("policy=zeros", f"tls_cert={cert}", f"tls_key={key}") as (_, url, _lines):
        assert url.startswith("wss://")
        with PolicyClient(url, ca_file=cert, timeout_s=PATIENCE) as client:
            assert client.infer(state_message()).actions.shape == (16, 8)
        refused = {
            url: "let SSL_CERT_FILE name the certificate of the CA that signed its own",
            url.replace("wss", "ws"): "if it serves by TLS, write wss://",
        }
        for address, remedy in refused.items():
            with pytest.raises(ServerError, match=f"cannot connect.*; {remedy}$"):
                PolicyClient(address, timeout_s=PATIENCE).connect()
            assert policy_server(address).remedy == remedy
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        assert policy_server(url).status == "ok"
        assert policy_server(url.replace("127.0.0.1", "localhost")).remedy == "write its host as its certificate does"


def test_a_certificate_without_its_key_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cert, _ = certificate(tmp_path)
    assert main(["policy=hold", f"tls_cert={cert}", f"tls_key={cert}"]) == 2
    assert "tls_key=" in capsys.readouterr().err


def test_usage_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    usage = capsys.readouterr().out
    for key in (*ServedPolicy.model_fields, *ServerSettings.model_fields):
        assert re.search(rf"^  {key}=" if key != "wire_keys" else r"^  camera\.NAME=KEY", usage, re.MULTILINE), key


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["polcy=hold"], "did you mean policy?"),
        (["policy="], "policy=: no value; leave it out"),
        (["port=1"], "checkpoint: required"),
        (["policy=hold", "checkpoint=x"], "checkpoint: required, or policy="),
        (["policy=holt"], "did you mean hold?"),
        (["policy=replay"], "replay:FILE"),
        (["policy=hold:x"], "policy=hold:x"),
        (["policy=replay:/none.npy"], "No such file"),
        (["policy=hold", "port=many"], "port=many: must be a whole number"),
        (["policy=hold", "port=70000"], "must be a whole number >= 0 and <= 65535"),
        (["policy=hold", "deadline_ms=soon"], "must be a number"),
        (["policy=hold", "insecure=maybe"], "must be true or false"),
        (["policy=hold", "host=0.0.0.0"], "token_file=FILE"),
        (["policy=hold", "action_space=joints"], "action_space=joints"),
        (["policy=hold", "action_space=cartesian_position"], "cannot act in"),
        (["policy=hold", "control_hz=0"], "must be a number > 0"),
        (["policy=hold", "execution_law=rukig"], "did you mean ruckig?"),
        (["policy=hold", "n_action_steps=17"], "wants 1 to 16"),
        (["policy=hold", "horizon=0"], "horizon=0: must be a whole number >= 1 and <= 1000"),
        (["policy=hold", "token_file=/none"], "token_file=/none: cannot be read"),
        (["policy=hold", "token=long enough", "token_file=/none"], "give one of them"),
        (["checkpoint=/none"], "no such folder"),
        (["checkpoint=./a/b"], "no such folder"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_the_token_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSPEC_TOKEN", "from the environment")
    assert ServerSettings().secret == "from the environment"
    assert ServerSettings(token="from the command").secret == "from the command"


def test_settings_have_their_types() -> None:
    line = ServeCommand.read(
        ["policy=hold", "camera.front=observation/image", "max_batch=3", "idle_s=5", "roboarena=true"]
    )
    assert (line.max_batch, line.idle_s, line.roboarena) == (3, 5.0, True)
    assert built_in_policy(line).spec.wire_key("front") == "observation/image"


def wanted(**meaning: Any) -> ServedPolicy:
    return ServedPolicy.model_validate({"checkpoint": "x", **meaning}, strict=False)


def folder_with(tmp_path: Path, record: Any = None) -> str:
    if record is not None:
        (tmp_path / "rlspec.json").write_text(record if isinstance(record, str) else json.dumps(record))
    return str(tmp_path)


def test_a_checkpoint_says_what_its_actions_mean(tmp_path: Path) -> None:
    meaning = read_meaning(folder_with(tmp_path, RECORD), wanted(control_hz=15))
    assert (meaning.action_space, meaning.control_hz, meaning.execution_law) == tuple(RECORD.values())
    more = {"cameras": {"observation.images.wrist_left": [180, 320]}, "norm_stats_sha256": "abc"}
    meaning = read_meaning(folder_with(tmp_path, {**RECORD, **more}), wanted())
    assert meaning.sizes == {"wrist_left": (180, 320)}
    assert meaning.norm_stats_sha256 == "abc"


def test_what_it_does_not_say_must_be_given(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    with pytest.raises(ConfigError, match=r"add action_space=\.\.\. control_hz=\.\.\. execution_law=\.\.\."):
        read_meaning(folder, wanted())
    given = wanted(action_space="delta_eef", control_hz=20, execution_law="stiff_position")
    assert read_meaning(folder, given).action_space == "delta_eef"


def test_contradictions_are_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, RECORD)
    for key, value in (("action_space", "joint_position"), ("control_hz", 20), ("execution_law", "ruckig")):
        with pytest.raises(ConfigError, match=f"{key}={value}: the checkpoint was trained with"):
            read_meaning(folder, wanted(**{key: value}))


@pytest.mark.parametrize("record", ["{", "[1]"])
def test_a_broken_record_is_named(tmp_path: Path, record: str) -> None:
    with pytest.raises(CheckpointError, match="rlspec.json"):
        read_meaning(folder_with(tmp_path, record), wanted())


def test_the_newest_checkpoint_of_a_run_is_served(tmp_path: Path) -> None:
    from rlspec.checkpoint import staged_folder

    for step in (1, 12):
        with staged_folder(tmp_path / "checkpoints" / f"checkpoint-{step}", metadata={"step": step}) as folder:
            (folder / "config.json").write_text("{}")
    assert Path(find_weights(str(tmp_path))).name == "checkpoint-12"
    assert Path(find_weights(str(tmp_path / "checkpoints" / "checkpoint-1"))).name == "checkpoint-1"
    assert find_weights("lerobot/smolvla_base") == "lerobot/smolvla_base"
    (tmp_path / "checkpoints" / "checkpoint-12" / "config.json").write_text("{ }")
    with pytest.raises(CheckpointError, match="config.json has 3 bytes instead of 2"):
        find_weights(str(tmp_path / "checkpoints" / "checkpoint-12"))
