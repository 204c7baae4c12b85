"""The console script: `rlspec X ...` is `python -m rlspec.X ...` and imports only X."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from rlspec.errors import nearest


def commands() -> dict[str, str]:
    """Every entry point of the package with one line about it: modules with a `main`, packages with a `__main__`."""
    package = Path(__file__).parent
    found = {}
    for path in sorted([*package.glob("*.py"), *package.glob("*/__main__.py")]):
        name = path.parent.name if path.name == "__main__.py" else path.stem
        if name in ("cli", package.name):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    known = commands()
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_usage(known))
        return 0
    name, *rest = arguments
    if name not in known:
        sys.stderr.write(f"rlspec {name}: unknown command; {nearest(name, known)}\n")
        return 2
    module = f"rlspec.{name}.__main__" if (Path(__file__).parent / name).is_dir() else f"rlspec.{name}"
    return int(importlib.import_module(module).main(rest) or 0)


def _usage(known: dict[str, str]) -> str:
    width = max(map(len, known))
    lines = [f"  {name:{width}}  {about}" for name, about in known.items()]
    return "\n".join(["usage: rlspec COMMAND [key=value ...]", "", *lines, "", "rlspec COMMAND --help says more.", ""])


if __name__ == "__main__":
    sys.exit(main())
