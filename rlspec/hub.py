"""One way to reach the Hugging Face hub: a snapshot of a repository in the local cache, or one clear line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import httpx
from huggingface_hub import HfApi, errors, get_token, snapshot_download

TIMEOUT = 5.0  # seconds for the first answer; without a network the answer comes at once


def is_local(path: str) -> bool:
    """Whether `path` is meant as a local file or folder, existing or not, and not as a hub id such as ``org/name``."""
    return Path(path).expanduser().exists() or path.startswith((".", "~", os.sep)) or path.count("/") > 1


def fetch_snapshot(
    repo: str, *, kind: Literal["model", "dataset"], files: list[str] | None = None, revision: str | None = None
) -> Path:
    """Folder of the local cache with the repository's files, downloaded where they are missing.

    Without a network, what an earlier download left in the cache is used.

    Args:
        repo: hub id, ``organisation/name``.
        kind: what the repository holds.
        files: glob patterns of the files that are needed; None: all.
        revision: branch, tag or commit; None: the main branch.

    Raises:
        ConnectionError: with one line that says what could not be fetched and why, without the remedy.
    """
    what = f"{kind} {repo}" + (f" (revision {revision})" if revision else "")
    try:
        folder = snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=files, etag_timeout=TIMEOUT)
    except (errors.HfHubHTTPError, errors.HFValidationError, httpx.HTTPError, OSError) as error:
        raise ConnectionError(f"cannot fetch {what}: {refusal(error, repo) or one_line(error)}") from error
    return Path(folder)


def token_of_the_hub() -> str | None:
    """The user's token, from HF_TOKEN or `hf auth login`."""
    return get_token()


def upload_folder(folder: Path, repo: str, *, leave_out: Sequence[str]) -> str:
    """Upload a folder as a model, which is made (private) where it does not exist; returns its address.

    Args:
        folder: what is uploaded.
        repo: hub id, ``owner/name``.
        leave_out: glob patterns of files that stay.

    Raises:
        ConnectionError: with one line that says why, without the remedy.
    """
    hub = HfApi(library_name="rlspec")
    try:
        hub.create_repo(repo, private=True, exist_ok=True)
        hub.upload_folder(
            repo_id=repo, folder_path=folder, ignore_patterns=list(leave_out), commit_message="Upload by rlspec"
        )
    except (errors.HfHubHTTPError, errors.HFValidationError, httpx.HTTPError, OSError, ValueError) as error:
        raise ConnectionError(_write_refusal(error) or refusal(error, repo) or one_line(error)) from error
    return f"{hub.endpoint}/{repo}"


def _write_refusal(error: BaseException) -> str | None:
    """What the hub says of a token when something is to be written."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    reasons = {
        401: "the hub does not accept the token: set HF_TOKEN anew, or run `hf auth login`",
        403: "the token may not write there: it needs the role `write`, and the owner must be you or an organisation",
        404: "the token may not write there, or there is no such owner",
    }
    return reasons.get(status) if isinstance(status, int) else None


def refusal(error: BaseException, repo: str = "") -> str | None:
    """Why the hub gives something not, without the remedy; None: neither the error nor what caused it is of the hub.

    Args:
        error: of the hub's client, or one around it.
        repo: hub id, where it is known.
    """
    page = f"on https://huggingface.co/{repo}" if repo else "on its page"
    away = "the hub is unreachable and it is not in the cache"
    reasons: tuple[tuple[type[BaseException], str], ...] = (  # what is derived from another one goes before it
        (errors.GatedRepoError, f"access to it is restricted: accept its terms {page} and set HF_TOKEN"),
        (errors.RepositoryNotFoundError, "the hub has no such public repository"),
        (errors.RevisionNotFoundError, "the hub has no such revision"),
        (errors.LocalEntryNotFoundError, away),
        (errors.EntryNotFoundError, "that repository lacks a file that is needed"),
        (errors.HFValidationError, "neither a local path nor a hub id (organisation/name)"),
        (errors.OfflineModeIsEnabled, away),
    )
    seen: BaseException | None = error
    while seen is not None:
        for kind, reason in reasons:
            if isinstance(seen, kind):
                return reason
        if isinstance(seen, errors.HfHubHTTPError):
            return one_line(seen)
        if isinstance(seen, ConnectionError | httpx.ConnectError):
            return away
        seen = seen.__cause__ or seen.__context__
    return None


def one_line(error: BaseException, length: int = 200) -> str:
    """An error's message on one line, shortened."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= length else text[: length - 1] + "…"
