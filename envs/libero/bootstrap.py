"""Imports hf-libero and robosuite without prompts, log files, or writes outside a private cache folder.

`import libero.libero` asks on stdin where to put data sets when its config.yaml is missing; robosuite 1.4 logs to a
file in the shared temporary folder and warns on stderr; numba caches into the package. All of that is settled here,
before the first import. Everything in this module is cheap until `import_libero` is called.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import io
import os
import stat
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rlspec_envs.errors import EnvironmentUnavailable
from rlspec_envs.libero.assets import find_assets
from rlspec_envs.rendering import choose_gl

INSTALL = "install it with `uv sync --extra libero` (or `pip install hf-libero==0.1.4`)"


@dataclass(frozen=True)
class LiberoSetup:
    """What the import used: folders and the renderer, all JSON-safe text."""

    package: str
    assets: str
    assets_source: str
    config: str
    gl: str


_setup: LiberoSetup | None = None


def package_folder() -> Path:
    """Folder `libero/libero` of the installed package, found without importing it."""
    spec = importlib.util.find_spec("libero")
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "libero"
        if (folder / "bddl_files").is_dir():
            return folder.resolve()
    raise EnvironmentUnavailable(f"LIBERO needs the package hf-libero, which is not installed: {INSTALL}")


def cache_folder() -> Path:
    """Private folder for the configuration and compiled code: below $XDG_CACHE_HOME, else below the temporary folder.

    The home folder is never a default. A folder that cannot be written, or that belongs to somebody else, is replaced
    by a fresh temporary one of this process.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    folder = Path(base) / "rlspec" if base else Path(tempfile.gettempdir()) / f"rlspec-cache-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
        usable = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        usable = False
    return folder if usable else Path(tempfile.mkdtemp(prefix="rlspec-cache-"))


def write_config(package: Path, assets: Path, folder: Path) -> Path:
    """Write LIBERO's config.yaml for `package` and `assets` below `folder`, atomically; return its folder.

    Workers that start together write the same content to the same place, so the last rename wins harmlessly.
    """
    entries = {
        "benchmark_root": package,
        "bddl_files": package / "bddl_files",
        "init_states": package / "init_files",
        "datasets": folder / "datasets",
        "assets": assets,
    }
    text = "".join(f"{key}: {_quoted(str(value))}\n" for key, value in entries.items())
    target = folder / "libero" / hashlib.sha256(text.encode()).hexdigest()[:12] / "config.yaml"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=target.parent, prefix=".config-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(partial, target)
    return target.parent


def _quoted(value: str) -> str:
    """A YAML single-quoted scalar."""
    return "'" + value.replace("'", "''") + "'"


def import_libero() -> LiberoSetup:
    """Import `libero.libero` once, ready to build environments; later calls return what the first one found.

    Raises:
        EnvironmentUnavailable: The package, the scene assets or a renderer is missing; the text names the remedy.
    """
    global _setup
    if _setup is None:
        package = package_folder()
        assets = find_assets(package, allow_download=True)
        gl = choose_gl()
        folder = cache_folder()
        config = write_config(package, assets.folder, folder)
        os.environ["LIBERO_CONFIG_PATH"] = str(config)
        os.environ.setdefault("NUMBA_CACHE_DIR", str(folder / "numba"))
        _keep_matplotlib_from_home(folder)
        _import_packages(assets.folder)
        _setup = LiberoSetup(str(package), str(assets.folder), assets.source, str(config / "config.yaml"), str(gl))
    return _setup


def _keep_matplotlib_from_home(folder: Path) -> None:
    """LIBERO imports matplotlib, which would make its settings folder; one that the user has is used as it is."""
    settings = Path(os.environ.get("XDG_CONFIG_HOME", "~/.config")).expanduser() / "matplotlib"
    if not settings.is_dir():
        os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))


def _import_packages(assets: Path) -> None:
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with _quiet_robosuite():
                import robosuite.macros  # noqa: F401
            import libero.libero as libero

            # Its own search prints, and goes to the hub whenever the package holds no assets.
            libero._assets_path_cache = str(assets)
            import libero.libero.envs  # noqa: F401
    except ImportError as error:
        raise EnvironmentUnavailable(f"LIBERO cannot be imported ({error}): {INSTALL}") from error


@contextlib.contextmanager
def _quiet_robosuite() -> Iterator[None]:
    """Import robosuite without its log file in the shared temporary folder and without its advice on stderr.

    Both happen inside the package's first import, so its settings have to be in place before it: the module of settings
    is loaded by its path, and an absent file of private settings is stood in for by an empty module.
    """
    spec = importlib.util.find_spec("robosuite")
    if spec is None or "robosuite" in sys.modules or not spec.submodule_search_locations:
        yield
        return
    folder = Path(spec.submodule_search_locations[0])
    macros_spec = importlib.util.spec_from_file_location("robosuite.macros", folder / "macros.py")
    assert macros_spec is not None and macros_spec.loader is not None
    macros = importlib.util.module_from_spec(macros_spec)
    macros_spec.loader.exec_module(macros)
    macros.__dict__.update(FILE_LOGGING_LEVEL=None, CONSOLE_LOGGING_LEVEL="ERROR")
    sys.modules["robosuite.macros"] = macros
    if not (folder / "macros_private.py").is_file():
        sys.modules["robosuite.macros_private"] = types.ModuleType("robosuite.macros_private")
    yield
    sys.modules["robosuite"].__dict__.setdefault("macros", macros)


def check_available() -> None:
    """Raise `EnvironmentUnavailable` where the package or its assets are missing, before a scene is loaded.

    With assets that have to be fetched first, fetching is left to `import_libero`.
    """
    if _setup is None and os.environ.get("LIBERO_ASSETS"):
        find_assets(package_folder(), allow_download=False)


def describe_setup() -> dict[str, str]:
    """Renderer and folders that LIBERO was imported with, or `not loaded` before that, as JSON-safe text."""
    if _setup is None:
        return dict.fromkeys(("package", "assets", "assets_source", "config", "gl"), "not loaded")
    return asdict(_setup)
