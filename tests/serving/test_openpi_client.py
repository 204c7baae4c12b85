"""openpi-client itself, in an environment of its own (it needs numpy<2), talks to our server."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from serving_cases import WITH_CAMERAS, Echo, serving

VERSION = "0.1.2"
PROGRAM = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import numpy as np
import openpi_messages
from openpi_client import action_chunk_broker, websocket_client_policy

address, token = sys.argv[1:]
policy = websocket_client_policy.WebsocketClientPolicy(address, api_key=token)
metadata = policy.get_server_metadata()
message = openpi_messages.droid_observation(180, 320)
chunk = policy.infer(message)
broker = action_chunk_broker.ActionChunkBroker(policy, action_horizon=8)
steps = [broker.infer(message)["actions"].tolist() for _ in range(9)]
try:
    policy.infer({{"prompt": "no camera"}})
    error = "none"
except RuntimeError as raised:
    error = str(raised)
print(json.dumps({{
    "numpy": np.__version__,
    "metadata": metadata,
    "actions": chunk["actions"].tolist(),
    "dtype": str(chunk["actions"].dtype),
    "timing": chunk["server_timing"],
    "steps": steps,
    "error": error,
}}))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with openpi-client."""
    folder = tmp_path_factory.mktemp("openpi")
    venv.create(folder, with_pip=True)
    interpreter = folder / "bin" / "python"
    packages = (f"openpi-client=={VERSION}", "typing_extensions")  # it imports the second and does not ask for it
    command = [interpreter, "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        last = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "no reason given")
        pytest.skip(f"openpi-client {VERSION} cannot be installed here: {last}")
    return interpreter


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(sys.platform == "win32", reason="venv has another layout")
def test_openpis_own_client_is_served(python: Path) -> None:
    policy = Echo(WITH_CAMERAS)
    with serving(policy, token="a long secret") as server:
        command = [python, "-c", PROGRAM, server.url, "a long secret"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    state = [*np.linspace(-1, 1, 7), 0.25]
    assert result["numpy"].startswith("1.")
    assert result["metadata"]["rlspec"]["action_space"] == "joint_velocity"
    assert result["dtype"] == "float32"
    np.testing.assert_allclose(result["actions"], np.tile(state, (10, 1)), rtol=1e-6)
    np.testing.assert_allclose(result["steps"], np.tile(state, (9, 1)), rtol=1e-6)
    assert result["timing"]["infer_ms"] >= 0
    assert "observation/exterior_image_1_left: missing" in result["error"]
    assert len(policy.seen) == 3  # one by itself, two by the broker: its chunk of eight is used up
