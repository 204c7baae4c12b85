"""Fields of a dataclass read from its source file, because importing trl or transformers takes 20 seconds."""

from __future__ import annotations

import ast
import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rlspec.config.extras import install, not_installed
from rlspec.errors import ConfigError

# Class -> package and file. A base class that is not listed ends the search.
_FILES = {
    "GMPOConfig": ("trl", "experimental/gmpo/gmpo_config.py"),
    "GRPOConfig": ("trl", "trainer/grpo_config.py"),
    "SFTConfig": ("trl", "trainer/sft_config.py"),
    "_BaseConfig": ("trl", "trainer/base_config.py"),
    "LoraConfig": ("peft", "tuners/lora/config.py"),
    "FourierFTConfig": ("peft", "tuners/fourierft/config.py"),
    "TrainingArguments": ("transformers", "training_args.py"),
    "Qwen3Config": ("transformers", "models/qwen3/configuration_qwen3.py"),
    "PreTrainedConfig": ("transformers", "configuration_utils.py"),
}
_ENUMS = ("transformers", "trainer_utils.py")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "None": "null",
    "dict": "a mapping",
    "dict[str, Any]": "a mapping",
}
_SIMPLE: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "bool": bool,
    "int": int,
    "float": (int, float),
    "dict": dict,
    "list": list,
}


@dataclass(frozen=True)
class Knob:
    """One field of a dataclass.

    Attributes:
        name: its name.
        annotation: its type as an expression.
        choices: the only values it may have; empty: not restricted.
        about: the first sentence of its help.
    """

    name: str
    annotation: ast.expr
    choices: tuple[str, ...] = ()
    about: str = ""

    def accepts(self, value: Any) -> bool:
        """Whether a value from YAML has the field's type; a type that YAML cannot express counts as fitting."""
        if isinstance(value, str) and self.choices:
            return value in self.choices
        return _accepts(self.annotation, value)

    @property
    def allowed(self) -> str:
        """What the field takes, in words."""
        if self.choices:
            return ", ".join(self.choices)
        words = re.sub(r"^Optional\[(.*)\]$", r"\1 | None", ast.unparse(self.annotation)).split(" | ")
        return " or ".join(_WORDS.get(part, part) for part in words)


@cache
def read_knobs(class_name: str) -> dict[str, Knob]:
    """All fields of a class and its bases.

    Raises:
        ConfigError: The package is not installed, or is a version that does not have the class.
    """
    definition = next(
        (
            node
            for node in _parse(*_FILES[class_name]).body
            if isinstance(node, ast.ClassDef) and node.name == class_name
        ),
        None,
    )
    if definition is None:
        raise ConfigError(
            f"the installed {_FILES[class_name][0]} has no {class_name}: {install('train')} brings a version that fits"
        )
    knobs: dict[str, Knob] = {}
    for base in reversed(definition.bases):
        if isinstance(base, ast.Name) and base.id in _FILES:
            knobs |= read_knobs(base.id)
    return knobs | own_fields(definition)


def own_fields(definition: ast.ClassDef) -> dict[str, Knob]:
    """The fields that a class itself declares, without those of its bases."""
    documentation = ast.get_docstring(definition) or ""
    knobs: dict[str, Knob] = {}
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.islower():
            knobs[node.target.id] = Knob(node.target.id, node.annotation, _choices(node, documentation), _help(node))
    return {name: knob for name, knob in knobs.items() if "ClassVar" not in ast.unparse(knob.annotation)}


def package_folder(package: str, extra: str = "train") -> Path:
    """Where an installed top-level package lies; it is not imported.

    Raises:
        ConfigError: It is not installed.
    """
    spec = importlib.util.find_spec(package)  # top level: finds without importing
    if spec is None or spec.origin is None:
        raise ConfigError(not_installed(package, extra))
    return Path(spec.origin).parent


@cache
def _parse(package: str, file: str) -> ast.Module:
    path = package_folder(package) / file
    if not path.is_file():
        raise ConfigError(f"the installed {package} has no {file}: {install('train')} brings a version that fits")
    return ast.parse(path.read_text(encoding="utf-8"))


def _choices(node: ast.AnnAssign, documentation: str) -> tuple[str, ...]:
    """Values of a field: its enumeration, its `metadata`, or the quoted words of its paragraph in the docstring."""
    names = {each.id for each in ast.walk(node.annotation) if isinstance(each, ast.Name)}
    enumeration = [name for name in names if name in _enumerations()]
    if enumeration and "list" not in names:  # a list may also be written as one text, "full_shard auto_wrap"
        return _enumerations()[enumeration[0]]
    stated = _metadata(node).get("choices")
    if isinstance(stated, ast.List):
        return tuple(ast.literal_eval(stated))
    if ast.unparse(node.annotation) != "str" or not isinstance(node.target, ast.Name):
        return ()
    # TRL documents its choices as `"word"` (or `"one"` or `"two"`) and checks them only when training starts.
    paragraph = re.search(rf"^( *){node.target.id} \(`str`.*\n((?:\1 +.*\n?|\s*\n)*)", documentation, re.MULTILINE)
    words = tuple(dict.fromkeys(re.findall(r'`"(\w+)"`', paragraph[2]))) if paragraph else ()
    return words if len(words) > 1 else ()


def _metadata(node: ast.AnnAssign) -> dict[str, ast.expr]:
    """Of `field(metadata={...})`, the expressions by name."""
    words = node.value.keywords if isinstance(node.value, ast.Call) else []
    metadata = next((word.value for word in words if word.arg == "metadata"), None)
    if not isinstance(metadata, ast.Dict):
        return {}
    pairs = zip(metadata.keys, metadata.values, strict=True)
    return {key.value: value for key, value in pairs if isinstance(key, ast.Constant) and isinstance(key.value, str)}


def _help(node: ast.AnnAssign) -> str:
    text = _metadata(node).get("help")
    if not isinstance(text, ast.Constant) or not isinstance(text.value, str):
        return ""
    return re.split(r"[.;] |\.$", " ".join(text.value.split()), maxsplit=1)[0]


@cache
def _enumerations() -> dict[str, tuple[str, ...]]:
    """Values of the string enumerations of transformers."""
    return {
        node.name: tuple(
            each.value.value
            for each in node.body
            if isinstance(each, ast.Assign)
            and isinstance(each.value, ast.Constant)
            and isinstance(each.value.value, str)
        )
        for node in _parse(*_ENUMS).body
        if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "ExplicitEnum" for base in node.bases)
    }


def _accepts(annotation: ast.expr, value: Any) -> bool:
    if isinstance(annotation, ast.BinOp):
        return _accepts(annotation.left, value) or _accepts(annotation.right, value)
    if isinstance(annotation, ast.Constant):
        return value is None if annotation.value is None else True
    if isinstance(annotation, ast.Subscript):
        if ast.unparse(annotation.value) == "list":
            return isinstance(value, list) and all(_accepts(annotation.slice, item) for item in value)
        if ast.unparse(annotation.value) == "tuple" and isinstance(annotation.slice, ast.Tuple):
            kinds = annotation.slice.elts  # YAML has lists alone
            fits = isinstance(value, list) and len(value) == len(kinds)
            return fits and all(_accepts(kind, item) for kind, item in zip(kinds, value, strict=True))
        if ast.unparse(annotation.value) == "Optional":
            return value is None or _accepts(annotation.slice, value)
        if ast.unparse(annotation.value) == "Union" and isinstance(annotation.slice, ast.Tuple):
            return any(_accepts(kind, value) for kind in annotation.slice.elts)
        return _accepts(annotation.value, value)
    kind = _SIMPLE.get(annotation.id) if isinstance(annotation, ast.Name) else None
    if kind is None:
        # An enumeration or a class of transformers: only its text form can stand in YAML.
        return not isinstance(annotation, ast.Name) or annotation.id in ("Any", "object") or isinstance(value, str)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
