"""What the hub's refusals come down to, in words that name the id and the way round."""

from __future__ import annotations


def hub_reason(error: BaseException, folder_key: str) -> str | None:
    """Why something of the hub cannot be had, with the remedy; None: another kind of error.

    Args:
        error: or one that caused it.
        folder_key: key that takes a local copy.
    """
    from huggingface_hub import errors

    reasons: tuple[tuple[type[BaseException], str], ...] = (
        (errors.GatedRepoError, "access to it is restricted: accept its terms on the hub and set HF_TOKEN"),
        (errors.RepositoryNotFoundError, "the hub has no such public repository: check the name"),
        (errors.RevisionNotFoundError, "the hub has no such revision: check it"),
        (errors.LocalEntryNotFoundError, "neither in the cache nor to be had: check the name and the network"),
        (errors.EntryNotFoundError, "that repository lacks a file that is needed: check the name"),
        (errors.HFValidationError, "neither a folder nor a hub id (OWNER/NAME): check it"),
        (errors.HfHubHTTPError, "the hub refused: check the network and `hf auth login`"),
        (errors.OfflineModeIsEnabled, "not in the cache, and the hub is switched off: unset HF_HUB_OFFLINE"),
        (ConnectionError, "not in the cache, and there is no network: mend that"),
    )
    seen: BaseException | None = error
    while seen is not None:
        for kind, reason in reasons:
            if isinstance(seen, kind):
                return f"{reason}, or give a local copy with {folder_key}=FOLDER"
        seen = seen.__cause__ or seen.__context__
    return None
