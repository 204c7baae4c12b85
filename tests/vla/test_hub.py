"""Refusals of the hub name the way round, whatever wraps them."""

from __future__ import annotations

import httpx
import pytest
from huggingface_hub import errors

from rlspec.vla.hub import hub_reason

ANSWER = httpx.Response(404, request=httpx.Request("GET", "https://hub.example/x"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.GatedRepoError("x", response=ANSWER), "accept its terms"),
        (errors.RepositoryNotFoundError("x", response=ANSWER), "no such public repository"),
        (errors.LocalEntryNotFoundError("x"), "check the name and the network"),
        (errors.EntryNotFoundError("x"), "lacks a file"),
        (errors.OfflineModeIsEnabled("x"), "unset HF_HUB_OFFLINE"),
        (errors.HFValidationError("x"), "neither a folder nor a hub id"),
        (ConnectionError("x"), "there is no network"),
    ],
)
def test_every_refusal_has_a_reason_and_the_folder_as_a_remedy(error: Exception, said: str) -> None:
    wrapped = ValueError("y")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        reason = hub_reason(each, "policy.path")
        assert reason is not None and said in reason
        assert reason.endswith(", or give a local copy with policy.path=FOLDER")
    assert hub_reason(ValueError("shape mismatch"), "policy.path") is None
