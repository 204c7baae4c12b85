"""Refusals of the hub are named alike, whatever wraps them."""

from __future__ import annotations

import httpx
import pytest
from huggingface_hub import errors

from rlspec.hub import refusal

ANSWER = httpx.Response(404, request=httpx.Request("GET", "https://hub.example/x"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            errors.GatedRepoError("x", response=ANSWER),
            "accept its terms on https://huggingface.co/a/b and",
        ),
        (errors.RepositoryNotFoundError("x", response=ANSWER), "no such public repository"),
        (errors.RevisionNotFoundError("x", response=ANSWER), "no such revision"),
        (errors.LocalEntryNotFoundError("x"), "unreachable and it is not in the cache"),
        (errors.EntryNotFoundError("x"), "lacks a file"),
        (errors.OfflineModeIsEnabled("x"), "unreachable and it is not in the cache"),
        (errors.HFValidationError("x"), "neither a local path nor a hub id"),
        (errors.HfHubHTTPError("500 at its end", response=ANSWER), "500 at its end"),
        (ConnectionError("x"), "unreachable"),
    ],
)
def test_every_refusal_has_a_reason(error: Exception, said: str) -> None:
    wrapped = ValueError("y")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        assert said in (refusal(each, "a/b") or "")


def test_other_errors_are_none_of_the_hubs() -> None:
    assert refusal(ValueError("shape mismatch")) is None
