"""Which role a parameter plays, by its family, the modules around it and its name; never by its shape."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from rlspec.errors import ConfigError
from rlspec.optim.kernels.layout import block_shape, check_layout
from rlspec.optim.map.families import ADAPTIVE_NORM, HEAD_NAMES, MODULES, Entry, Family, find_family, modality_of
from rlspec.optim.map.groups import GAUGE

_WRAPPERS = re.compile(r"(?:^|\.)(?:_orig_mod|base_layer|modules_to_save\.[^.]+)(?=\.)")
_PARAMETRISED = re.compile(r"\.?parametrizations\.([^.]+)\.original$")  # of torch.nn.utils.parametrize
_LORA = re.compile(r"\.lora_(embedding_)?([AB])\.([^.]+)(?:\.weight)?$")
_NAMED_ALONE = ("token", "position")  # roles of bare parameters, told by their names
_OUTPUT = re.compile(
    r"(?:^|\.)(?:lm_head|embed_out|classifier|score|qa_outputs|heads\.head|output_projection)(?:\.\d+)?\.weight$"
    r"|^(?:(?:module|model|base_model|net|network|backbone|policy|_orig_mod)\.)*(?:head|head\.fc|fc|output|proj_out)\.weight$"
)
"""Output heads by the words of torch, torchvision, timm and transformers."""
_QUERIES = re.compile(r"(?:^|_)[wW]?(?:q|qk|qkv|query)(?:_|$)|^(?:c_attn|att_proj)$")
"""Layers beside which an output projection is one of attention; mixers, MLPs and heads have some of that name too."""
_QUERY = re.compile(r"q_proj|to_q|query|wq|c_q")
_LATENT = {f"attention.{key}": f"{words}_head_dim" for key, words in zip("qkvo", ("qk", "qk", "v", "v"), strict=True)}
"""Role -> size of its heads in configs of latent attention (MLA), whose head_dim is that of the positions alone."""
_NEAR = 4  # modules above a projection among which its attention is sought; adapters put two between


@dataclass(frozen=True)
class Claim:
    """Role and layout of a parameter, before any rule is chosen.

    Attributes:
        role: what it does.
        group: symmetry group, rows x columns.
        num_heads: blocks that heads make of it.
        head_axis: axis that is cut.
        parts: blocks that it has even where heads are not cut; 0: projections of unequal size, which only heads part.
        stacked: whether the first axis counts matrices.
        transposed: whether it is stored (in, out).
        interleave: lines of a part that lie together where parts alternate; 0: they do not.
        blocks: a letter for each head of fused projections, see `Entry.blocks`.
        modality: part of the model.
        partner: of a LoRA factor, the name of the other one.
        scaling: of a LoRA factor's layer; None: unknown.
        problem: why it cannot be cut into heads, if it cannot.
    """

    role: str
    group: str
    num_heads: int = 1
    head_axis: int = 0
    parts: int = 1
    stacked: bool = False
    transposed: bool = False
    interleave: int = 0
    blocks: str = ""
    modality: str = ""
    partner: str | None = None
    scaling: float | None = None
    problem: ConfigError | None = None


@dataclass
class Owner:
    """Where a parameter lives.

    Attributes:
        path: of its module, without what peft and torch.compile put into it.
        ancestors: its module, the one around it, and so on.
        is_output: whether the module is the model's output head.
    """

    path: str
    ancestors: list[nn.Module]
    is_output: bool = False

    @property
    def module(self) -> nn.Module:
        """The one that holds the parameter."""
        return self.ancestors[0]

    @cached_property
    def config(self) -> Any:
        """The nearest with a `model_type`."""
        configs = (getattr(module, "config", None) for module in self.ancestors)
        return next((found for found in configs if isinstance(getattr(found, "model_type", None), str)), None)

    @cached_property
    def family(self) -> Family | None:
        """That of the config."""
        return find_family(getattr(self.config, "model_type", None))

    def near(self, word: str) -> Any:
        """An attribute of the nearest module around, or None."""
        found = (getattr(module, word, None) for module in self.ancestors[1:_NEAR])
        return next((value for value in found if value is not None), None)

    @cached_property
    def has_queries(self) -> bool:
        """Whether a module around holds a projection to queries."""
        return any(_QUERIES.search(key) for module in self.ancestors[1:_NEAR] for key, _ in module.named_children())

    def number(self, attribute: str, *, declared: bool = True) -> int | None:
        """A number of heads or a size: from a family's config, or else from modules around it, then from any config."""
        found = getattr(self.config, attribute, None)
        if declared:
            return found if isinstance(found, int) else None
        counts = [self.near(word) for word in HEAD_NAMES.get(attribute, (attribute,))]
        if self.family is None:
            counts.append(found)
        if attribute == "num_key_value_heads":
            counts.append(self._of_the_size_of_queries(self.number("num_attention_heads", declared=False)))
        return next((number for number in counts if isinstance(number, int)), None)

    def _of_the_size_of_queries(self, heads: int | None) -> int | None:
        """How many heads of the queries' size these keys or values have; None where they cannot have that size."""
        around = (child for module in self.ancestors[1:_NEAR] for child in module.named_children())
        beside = next((module for key, module in around if _QUERY.fullmatch(key)), None)
        queries, own = (getattr(module, "out_features", None) for module in (beside, self.module))
        if not heads or not queries or not own or queries % heads:
            return heads
        size = queries // heads
        return None if own % size else own // size


def walk(model: nn.Module) -> Iterator[tuple[str, Tensor, Owner]]:
    """Parameters once each, under their first names."""
    modules = dict(model.named_modules())
    heads = _output_heads(modules)
    seen: set[Tensor] = set()
    for path, module in modules.items():
        for key, param in module.named_parameters(recurse=False):
            if param in seen:
                continue
            seen.add(param)
            name = f"{path}.{key}" if path else key
            home = _PARAMETRISED.sub("", name) if _PARAMETRISED.search(name) else path
            parts = home.split(".") if home else []
            ancestors = [modules[".".join(parts[:end])] for end in range(len(parts), -1, -1)]
            yield name, param, Owner(_plain(home), ancestors, _plain(home) in heads)


def _plain(name: str) -> str:
    """A name without what peft, torch.compile and parametrisations put into it."""
    name = _PARAMETRISED.sub(r".\1", name)
    return _WRAPPERS.sub("", f"{name}.").removesuffix(".").removeprefix(".")


def _output_heads(modules: Mapping[str, nn.Module]) -> set[str]:
    """Plain paths of what transformers' models say maps to the vocabulary."""
    paths = {id(module): path for path, module in modules.items()}
    getters = [getattr(module, "get_output_embeddings", None) for module in modules.values()]
    found = [getter() for getter in getters if callable(getter)]
    return {_plain(paths[id(head)]) for head in found if id(head) in paths}


def claim(name: str, param: Tensor, owner: Owner, fallback: bool = False) -> Claim | None:
    """Find a parameter's role, or None; `fallback` accepts an unknown one because the user named its rule."""
    plain = _plain(name)
    lora = _LORA.search(plain)
    if lora:
        return _lora_claim(name, plain[: lora.start()], lora, param, owner)
    entry = _entry(plain, param, owner)
    modality = _modality(plain, entry, owner)
    if entry is not None:
        stacked = entry.stacked or entry.role in _NAMED_ALONE and param.ndim == 3
        declared = Claim(
            entry.role, entry.symmetry, entry.parts, entry.head_axis, entry.parts, stacked, entry.transposed,
            int(entry.interleaved), modality=modality,
        )  # fmt: skip
        return _with_heads(declared, name, param, entry, owner)
    if owner.is_output and plain.endswith("weight") and param.ndim > 1:
        return Claim("lm_head", "S_V, shift x O(d)", modality=modality_of(plain) or "language")
    found = _claim_by_module(plain, param, owner)
    if found is None and any(word in _tuner_words(owner) for word in plain.split(".")):
        return Claim("adapter", "-", modality=modality)
    if found is None and fallback:
        found = Claim("other", "-")
    return None if found is None else replace(found, modality=modality)


def refusal(unknown: Sequence[tuple[str, Tensor, Owner]]) -> ConfigError:
    """What to say of parameters that nobody claims: all of them, alike ones together, with lines that claim them."""
    alike: dict[tuple[str, tuple[int, ...], str], list[Owner]] = defaultdict(list)
    for name, param, owner in unknown:
        pattern = "\\.".join(r"\d+" if word.isdigit() else re.escape(word) for word in name.split("."))
        alike[pattern, tuple(param.shape), type(owner.module).__name__].append(owner)
    listed = [
        f"{f'{len(owners)} of ' if len(owners) > 1 else ''}{_readable(pattern)} of shape {shape} in a {kind}"
        for (pattern, shape, kind), owners in alike.items()
    ]
    family = unknown[0][2].family
    known = {entry.role for entry in family.entries} if family else {"attention", "linear", "conv"}
    lines = [f'{{"pattern": r"^{pattern}$", "rule": "adamw"}}' for pattern in dict.fromkeys(key[0] for key in alike)]
    stacks = any(len(shape) > 2 for _, shape, _ in alike)
    return ConfigError(
        f"no role is known for {len(unknown)} trainable parameters: {'; '.join(listed)} (roles here: "
        f"{', '.join(sorted(known))}); freeze them, name their rules: overrides=[{', '.join(lines)}]"
        f"{_STACK if stacks else ''}, or declare "
        "them in a family"
    )


_STACK = (
    " (a spectral rule with stacked: true where the first axis counts matrices, parts: 2 where each is gate and up)"
)


def _readable(pattern: str) -> str:
    return re.sub(r"\\(.)", r"\1", pattern.replace(r"\d+", "N"))


def _modality(plain: str, entry: Entry | None, owner: Owner) -> str:
    declared = entry.modality if entry is not None else ""
    return declared or modality_of(plain) or (owner.family.modality if owner.family is not None else "")


def _entry(plain: str, param: Tensor, owner: Owner) -> Entry | None:
    """What the family says, or what common names say of modules without one."""
    if param.ndim > 1 and ADAPTIVE_NORM.claims(plain):
        return ADAPTIVE_NORM
    for entry in owner.family.entries if owner.family is not None else ():
        if entry.claims(plain):
            return entry
    if not _is_free(plain, owner):
        return None
    for entry in MODULES:
        if entry.claims(plain) and _fits(entry, param, owner):
            counted = all(owner.number(attribute, declared=False) for attribute in entry.head_counts)
            return entry if counted else None
    return None


def _is_free(plain: str, owner: Owner) -> bool:
    """Whether no family speaks for all matrices there; a head for actions may be put into any model."""
    return owner.family is None or modality_of(plain) == "action"


def _fits(entry: Entry, param: Tensor, owner: Owner) -> bool:
    """Whether a common name can mean this: bare parameters for tokens, linear and convolution layers for the rest."""
    if entry.role in _NAMED_ALONE:
        return param.ndim > 1
    if entry.stacked:
        return param.ndim == 3 and not getattr(owner.module, "is_transposed", False)
    if entry.role == "router":
        return param.ndim == 2 and owner.near("experts") is not None
    if entry.role == "attention.o" and not owner.has_queries:
        return False
    kinds = (nn.modules.conv._ConvNd,) if entry.role == "conv.patch" else (nn.Linear,)
    return isinstance(owner.module, (nn.Linear, *kinds)) and not isinstance(_at(owner, 1), nn.MultiheadAttention)


def _at(owner: Owner, level: int) -> nn.Module | None:
    return owner.ancestors[level] if len(owner.ancestors) > level else None


def _with_heads(declared: Claim, name: str, param: Tensor, entry: Entry, owner: Owner) -> Claim:
    """The claim with the number of heads from the config, or with the reason why that contradicts the parameter."""
    if entry.heads is None and entry.blocks is None:
        return declared
    try:
        blocks = _letters(name, param, entry, owner, (declared.stacked, declared.transposed))
    except ConfigError as error:
        return replace(declared, problem=error)
    parts, turns = _projections(blocks)
    size = block_shape(param.shape, 1, 0, declared.stacked, declared.transposed)[1 + entry.head_axis] // len(blocks)
    return replace(declared, num_heads=len(blocks), parts=parts, interleave=turns * size,
                   blocks=blocks if parts != 1 else "")  # fmt: skip


def _letters(name: str, param: Tensor, entry: Entry, owner: Owner, stored: tuple[bool, bool]) -> str:
    """A letter for each head on the cut axis, equal ones for one projection."""
    declared = owner.family is not None and entry in owner.family.entries
    if entry.blocks is not None:
        letters, said = entry.blocks(owner.config, owner.near), "its config"
    else:
        counts = {attribute: owner.number(attribute, declared=declared) for attribute in entry.head_counts}
        missing = [attribute for attribute, count in counts.items() if count is None]
        if missing:
            raise ConfigError(f"{name}: the model's config has no number {missing[0]}; override it with split: whole")
        letters = "".join(
            letter * (counts[attribute] or 0) for letter, attribute in zip("qkv", entry.head_counts, strict=False)
        )
        said = ", ".join(f"{attribute}={count}" for attribute, count in counts.items())
    check_layout(param.shape, len(letters), entry.head_axis, f"{name} ({said})", *stored)
    size = block_shape(param.shape, 1, 0, *stored)[1 + entry.head_axis] // max(len(letters), 1)
    sizes = (_LATENT.get(entry.role, ""), entry.head_dim) if entry.head_dim and entry.blocks is None else ()
    found = ((key, owner.number(key, declared=declared)) for key in sizes)
    key, head_dim = next(((key, number) for key, number in found if number is not None), ("", size))
    if head_dim != size:
        raise ConfigError(
            f"{name}: {said} makes heads of {size}, but the config's {key} is {head_dim}; correct the "
            "config, or override it with split: whole"
        )
    return letters


def _projections(letters: str) -> tuple[int, int]:
    """How many fused projections heads make, and how many heads of one lie together where they alternate, else 0."""
    kinds = "".join(dict.fromkeys(letters))
    run = len(letters) - len(letters.lstrip(letters[:1]))
    turn = "".join(kind * run for kind in kinds)
    turns, rest = divmod(len(letters), max(len(turn), 1))
    if rest or turn * turns != letters:
        return 0, 0
    return len(kinds), run if turns > 1 else 0


def _lora_claim(name: str, layer: str, lora: re.Match[str], param: Tensor, owner: Owner) -> Claim:
    """Factor B (out, r) of q, k, v splits by rows and A (r, in) of o by columns, like the layer; the other is whole."""
    embedding, factor, adapter = lora.groups()
    adapted = _adapted(owner, adapter)
    if hasattr(adapted, "parameter_name"):  # an adapter of a bare parameter, as of stacked experts
        layer = f"{layer}.{adapted.parameter_name}"
    entry = None if embedding else _lora_entry(layer, param, owner)
    other = "B" if factor == "A" else "A"
    start = name.rindex(f"lora_{embedding or ''}{factor}.")
    role = entry.role if entry is not None else "embed" if embedding else "linear"
    declared = Claim(
        f"lora.{factor}.{role}",
        "GL(r) with its partner",
        modality=_modality(layer, entry, owner),
        partner=name[:start] + name[start:].replace(f"{factor}.", f"{other}.", 1),
        # One pair that holds the factors of many experts has a scaling for none.
        scaling=adapted.scaling[adapter] if adapted is not None and getattr(adapted, "num_experts", 1) == 1 else None,
    )
    if entry is None or entry.stacked or (entry.head_axis == 0) != (factor == "B"):
        return declared
    declared = replace(
        declared,
        num_heads=entry.parts,
        head_axis=entry.head_axis,
        parts=entry.parts,
        interleave=int(entry.interleaved),
    )
    return _with_heads(declared, layer, param, entry, owner)


def _lora_entry(layer: str, param: Tensor, owner: Owner) -> Entry | None:
    return _entry(f"{layer}.weight", param, owner) or _entry(layer, param, owner)


def _adapted(owner: Owner, adapter: str) -> Any:
    """The layer that peft put around the adapted one, or None."""
    scalings = ((module, getattr(module, "scaling", None)) for module in owner.ancestors)
    return next((module for module, found in scalings if isinstance(found, Mapping) and adapter in found), None)


def _tuner_words(owner: Owner) -> set[str]:
    """What peft's layers around a parameter call their own."""
    names = (getattr(module, "adapter_layer_names", ()) for module in owner.ancestors[:_NEAR])
    return {word for found in names if isinstance(found, tuple) for word in found}


def _claim_by_module(plain: str, param: Tensor, owner: Owner) -> Claim | None:
    """Roles that the type of the module tells, in any family."""
    key = plain.rpartition(".")[2]
    module, kind, parent = owner.module, type(owner.module).__name__, _at(owner, 1)
    if isinstance(module, nn.Embedding) and key == "weight":
        return Claim("embed", "S_V x O(d)")
    if "norm" in kind.lower() and param.ndim == 1:
        return Claim("norm", "signs")
    if key.endswith("bias") and not isinstance(module, nn.Embedding):
        return Claim("bias", _rows_of_weight(plain, owner))
    if sum(size > 1 for size in param.shape) < 2 and not isinstance(module, _LAYERS):
        return Claim("vector", "-")
    if isinstance(module, nn.MultiheadAttention) and key == "in_proj_weight":
        blocks = "".join(letter * module.num_heads for letter in "qkv")
        return Claim("attention.qkv", "S_heads, O(head) x O(d)", len(blocks), 0, 3, blocks=blocks)
    if isinstance(module, nn.MultiheadAttention) and key in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        return Claim(f"attention.{key[0]}", "O(head) x O(d)", module.num_heads, 0)
    if isinstance(parent, nn.MultiheadAttention) and isinstance(module, nn.Linear) and key == "weight":
        return Claim("attention.o", "O(d) x O(head)", parent.num_heads, 1)
    if isinstance(module, nn.Linear) and _OUTPUT.search(plain) and _is_last(module, parent):
        return Claim("output", "- x O(d)")
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1 and param.shape[1] == 1:
        return Claim("depthwise", "-")
    if not _is_free(plain, owner):  # a known family says which other matrices it has
        return None
    return _claim_of_layer(module, kind) if key == "weight" else None


_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)


def _claim_of_layer(module: nn.Module, kind: str) -> Claim | None:
    """A weight of a layer of torch, whatever it is for."""
    if isinstance(module, nn.Linear):
        return Claim("linear", "O(out) x O(in)")
    if kind == "Conv1D":  # of transformers' GPT-2: stored (in, out)
        return Claim("linear", "O(out) x O(in)", transposed=True)
    if isinstance(module, nn.modules.conv._ConvNd):
        axis = int(module.transposed)  # stored (in, out, ...), where groups cut the inputs
        group = "- x O(in)" if axis else "O(out) x -"
        return Claim("conv", group, module.groups, axis, module.groups, transposed=module.transposed)
    return None


def _is_last(module: nn.Module, parent: nn.Module | None) -> bool:
    """Whether a layer is the last linear one of a sequence, or in none."""
    if not isinstance(parent, nn.Sequential):
        return True
    return [child for child in parent if isinstance(child, nn.Linear)][-1] is module


def _rows_of_weight(plain: str, owner: Owner) -> str:
    """The group of a bias is that of its layer's outputs."""
    key = plain.rpartition(".")[2]
    for name in (f"{key[:-4]}weight", key.removesuffix("_bias")):
        weight = getattr(owner.module, name, None)
        if name != key and isinstance(weight, Tensor) and weight.ndim > 1:
            found = claim(f"{plain.removesuffix(key)}{name}", weight, owner)
            return "-" if found is None or found.group.startswith(GAUGE) else found.group.partition(" x ")[0]
    return "-"
