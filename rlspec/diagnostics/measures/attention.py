"""How widely each attention head looks: the entropy of its weights, in any model that attends by torch's function."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def attention_entropy(
    query: Tensor,
    key: Tensor,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """Entropy of the weights over the log of the number of keys that are seen, in [0, 1]: mean per head (heads,).

    Args:
        query: (batch, heads, queries, size).
        key: (batch, heads, keys, size), or fewer heads that divide those of queries.
        mask: boolean (what is seen) or added to the scores; broadcast to (batch, heads, queries, keys).
        causal: query i sees keys up to i.
        scale: of the scores; None: 1 / sqrt(size).

    Returns:
        NaN of a head none of whose queries sees two keys.
    """
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scores = (query.float() @ key.float().mT) * (scale or query.shape[-1] ** -0.5)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -math.inf)
    if mask is not None:
        hidden = ~mask if mask.dtype == torch.bool else mask <= torch.finfo(mask.dtype).min / 2
        scores = (scores if mask.dtype == torch.bool else scores + mask).masked_fill(hidden, -math.inf)
    seen = (scores > -math.inf).sum(-1)
    entropy = torch.special.entr(scores.softmax(-1)).sum(-1) / seen.clamp(min=2).log()
    return torch.where(seen > 1, entropy, torch.nan).transpose(0, 1).flatten(1).nanmean(1)


class _Listener(TorchFunctionMode):
    def __init__(self, stack: list[str], found: dict[str, list[Tensor]]) -> None:
        super().__init__()
        self.stack, self.found = stack, found

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if function is F.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            known = dict(zip(names, args, strict=False)) | given
            query, key = (each if each.ndim == 4 else each[:, None] for each in (known["query"], known["key"]))
            entropy = attention_entropy(
                query.detach(), key.detach(), mask=known.get("attn_mask"), causal=bool(known.get("is_causal")),
                scale=known.get("scale"),
            )  # fmt: skip
            self.found.setdefault(self.stack[-1] if self.stack else "", []).append(entropy)
        return function(*args, **given)


@contextmanager
def attention_entropies(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """Collect, while the body runs, the entropies per head of every call, by the name of the module that attends."""
    stack: list[str] = []
    found: dict[str, list[Tensor]] = {}
    handles = []

    def leave(*_: Any) -> None:
        stack.pop()

    for name, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        with _Listener(stack, found):
            yield found
    finally:
        for handle in handles:
            handle.remove()
