"""The user's own functions and classes, looked for in their files: none of their code is run."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from rlspec.errors import nearest


def is_function(name: str) -> bool:
    """Whether a name is a function or class of the user's: `module:function`, or `file.py:function`."""
    return ":" in name


def missing_function(name: str, given: str) -> Iterator[str]:
    """A name that no file can have is answered at once; a module inside a package only where it is imported.

    Args:
        name: `module:function` or `file.py:function`.
        given: the override that names it, for messages.
    """
    module, _, function = name.rpartition(":")
    if not module or not all(part.isidentifier() for part in function.split(".")):
        yield f"{given}: must be module:function or file.py:function"
        return
    if module.endswith(".py"):
        path = Path(module).expanduser()
        if not path.is_file():
            yield f"{given}: no file {path}"
            return
    else:
        found = _find(module)
        if found is None:
            yield f"{given}: no module {module.partition('.')[0]}; start from its folder, or install it"
            return
        if "." in module or not found.endswith(".py"):
            return
        path = Path(found)
    names = _top_names(path)
    if names is not None and function.partition(".")[0] not in names:
        yield f"{given}: {path.name} has no {function}; {nearest(function, names)}"


def _find(module: str) -> str | None:
    """Where the top-level package of a module lies; it is not imported. Built-in ones have no file."""
    top = module.partition(".")[0]
    here = [Path(top) / "__init__.py", Path(f"{top}.py")]
    local = next((path for path in here if path.is_file()), None)  # as for plugins, the current folder counts
    if local is not None:
        return str(local)
    spec = importlib.util.find_spec(top) if top.isidentifier() else None
    return None if spec is None else str(spec.origin)


def _top_names(path: Path) -> frozenset[str] | None:
    """What a file defines at its top; None where that cannot be told without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return None  # the import says it better
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
            if any(alias.name == "*" for alias in node.names):
                return None
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
        elif not isinstance(node, ast.Expr):
            return None  # defined under a condition
    return frozenset(names)
