"""Finds LIBERO's scene files: LIBERO_ASSETS, the package's own folder, or the hub."""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

from rlspec_envs.errors import EnvironmentUnavailable

SUBFOLDERS = (
    "articulated_objects",
    "scenes",
    "stable_hope_objects",
    "stable_scanned_objects",
    "textures",
    "turbosquid_objects",
)
HUB = "lerobot/libero-assets"
REMEDY = "set LIBERO_ASSETS to a folder with LIBERO's assets (articulated_objects, scenes, ..., turbosquid_objects)"


@dataclass(frozen=True)
class Assets:
    """A checked folder of scene files and where it came from: `LIBERO_ASSETS`, `package`, `download`."""

    folder: Path
    source: str


def find_assets(package: Path, *, allow_download: bool) -> Assets:
    """Return the scene files that LIBERO will read.

    Raises:
        EnvironmentUnavailable: None are usable; one line with the folder at fault and the remedy.
    """
    chosen = os.environ.get("LIBERO_ASSETS")
    if chosen:
        return Assets(_checked(Path(chosen).expanduser()), "LIBERO_ASSETS")
    for folder, source in ((package / "assets", "package"), (download_folder(), "download")):
        if not missing_subfolders(folder):
            return Assets(folder, source)
    if not allow_download:
        raise EnvironmentUnavailable(f"LIBERO's scene assets are not on this machine: {REMEDY}")
    return Assets(_download(), "download")


def missing_subfolders(folder: Path) -> list[str]:
    """Expected subfolders that `folder` lacks (all of them when it does not exist)."""
    return [name for name in SUBFOLDERS if not (folder / name).is_dir()]


def download_folder() -> Path:
    """Where downloaded assets are kept: below the hub's own cache, which the user has agreed to."""
    hub = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(hub).expanduser() / "libero-assets"


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise EnvironmentUnavailable(f"LIBERO_ASSETS={folder} is not a folder: {REMEDY}")
    missing = missing_subfolders(folder)
    if missing:
        raise EnvironmentUnavailable(f"LIBERO_ASSETS={folder} lacks {', '.join(missing)}: {REMEDY}")
    return folder.resolve()


def _download() -> Path:
    if any(os.environ.get(name, "").upper() in {"1", "TRUE", "YES", "ON"} for name in ("HF_HUB_OFFLINE",)):
        raise EnvironmentUnavailable(
            f"LIBERO's scene assets are not on this machine and HF_HUB_OFFLINE forbids fetching them: {REMEDY}"
        )
    folder = download_folder()
    try:
        from huggingface_hub import snapshot_download

        with contextlib.redirect_stdout(io.StringIO()):
            snapshot_download(repo_id=HUB, repo_type="dataset", local_dir=folder)
    except Exception as error:  # The hub's client raises many unrelated types; all mean the same to the user.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentUnavailable(
            f"LIBERO's scene assets could not be fetched from the hub ({HUB}: {reason}): {REMEDY}"
        ) from error
    missing = missing_subfolders(folder)
    if missing:
        raise EnvironmentUnavailable(f"the hub's {HUB} in {folder} lacks {', '.join(missing)}: {REMEDY}")
    return folder
