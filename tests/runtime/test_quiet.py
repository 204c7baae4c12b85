from __future__ import annotations

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import _telemetry

from rlspec.runtime.quiet import quiet_libraries


@pytest.mark.parametrize(("wanted", "reports"), [(None, 0), ("0", 1)])
def test_no_run_reports_its_use_unless_the_user_says_so(
    wanted: str | None, reports: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[object] = []
    monkeypatch.setattr(_telemetry, "_start_telemetry_thread", lambda: None)
    monkeypatch.setattr(_telemetry._TELEMETRY_QUEUE, "put", sent.append)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", wanted or "")
    if wanted is None:
        monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY")
    quiet_libraries()
    _telemetry.send_telemetry("trl/GRPOTrainer")
    assert len(sent) == reports
