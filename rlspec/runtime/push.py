"""Upload of a finished run's weights to the Hugging Face hub: only where `push=OWNER/NAME` asks for it."""

from __future__ import annotations

import shlex
from pathlib import Path

from rlspec.checkpoint import MANIFEST, TRAINING_STATE
from rlspec.display import Display
from rlspec.errors import ConfigError, UserError
from rlspec.hub import token_of_the_hub, upload_folder

LEFT_OUT = (MANIFEST, *TRAINING_STATE)  # the manifest lists files that stay here


def check_push(repo: str | None) -> None:
    """Ask for what an upload needs before anything is trained.

    Raises:
        ConfigError: There is no token.
    """
    if repo is not None and token_of_the_hub() is None:
        raise ConfigError(f"push={repo}: no token of the hub; set HF_TOKEN, run `hf auth login`, or leave push out")


def push(folder: Path, repo: str, display: Display) -> None:
    """Upload weights, tokenizer or processor, recipe and card.

    Raises:
        UserError: The hub refuses or cannot be reached; the run's own files are all there.
    """
    try:
        place = upload_folder(folder, repo, leave_out=LEFT_OUT)
    except ConnectionError as error:
        excluded = [word for pattern in LEFT_OUT for word in ("--exclude", pattern)]
        again = shlex.join(["hf", "upload", repo, str(folder), ".", "--private", *excluded])
        raise UserError(
            f"push={repo}: not uploaded: {error}; the run is whole in {folder}; try again with: {again}"
        ) from error
    display.line(f"uploaded  {place} (private where it was made now; its settings change that)")
