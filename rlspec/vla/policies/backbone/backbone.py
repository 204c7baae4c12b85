"""A vision-language backbone: images, text and action queries go in, the hidden states of every layer come out."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlspec.vla.policies.backbone.text import embed_words


class Hidden(NamedTuple):
    """Hidden states before the first layer and behind each.

    Attributes:
        task: of images and text, one (B, L, D) for each.
        queries: of the action queries, one (B, Q, D) for each.
        mask: (B, L), False where padded.
    """

    task: tuple[Tensor, ...]
    queries: tuple[Tensor, ...]
    mask: Tensor


class Embedded(NamedTuple):
    """What goes into the decoder: tokens (B, L, D) and their mask (B, L)."""

    tokens: Tensor
    mask: Tensor


class Backbone(nn.Module):
    """Images and text go through a decoder together with action queries, which come last."""

    decoder: nn.Module

    @property
    def width(self) -> int:
        """Of the hidden states."""
        return int(self.decoder.config.hidden_size)  # type: ignore[union-attr, arg-type]

    @property
    def num_layers(self) -> int:
        """Layers that give hidden states."""
        return int(self.decoder.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor, queries: Tensor) -> Hidden:
        """Run images, text and queries through the decoder.

        Args:
            images: (B, cameras, 3, H, W) in [-1, 1].
            ids: (B, L) of the text.
            mask: (B, L), False where padded.
            queries: (Q, D).
        """
        raise NotImplementedError


class TokenBackbone(Backbone):
    """A decoder that was not made for images: it gets their tokens as embeddings, and the queries see everything.

    Args:
        bidirectional: whether images and text see each other freely.
    """

    def __init__(self, bidirectional: bool) -> None:
        super().__init__()
        self.bidirectional = bidirectional

    def embed(self, images: Tensor, ids: Tensor, mask: Tensor) -> Embedded:
        """Tokens of images (B, cameras, 3, H, W) in [-1, 1] and of text ids (B, L) with their mask."""
        raise NotImplementedError

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor, queries: Tensor) -> Hidden:
        """As the parent."""
        prefix, mask = self.embed(images, ids, mask)
        tokens = torch.cat([prefix, queries.to(prefix.dtype).expand(len(prefix), -1, -1)], 1)
        states = self.decoder(
            inputs_embeds=tokens,
            attention_mask=attention_mask(mask, len(queries), self.bidirectional),
            position_ids=count_positions(mask, len(queries)),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        length = mask.shape[1]
        return Hidden(tuple(each[:, :length] for each in states), tuple(each[:, length:] for each in states), mask)


class TinyBackbone(TokenBackbone):
    """The backbone that is built in code: words are sums of bytes, and look at the images before the decoder."""

    def __init__(
        self, vision_tower: nn.Module, language_model: nn.Module, multi_modal_projector: nn.Module, *,
        positions: tuple[int, ...], width: int, bidirectional: bool,
    ) -> None:  # fmt: skip
        super().__init__(bidirectional)
        self.pos_embed = image_positions(*positions, width)
        self.vision_tower = vision_tower
        self.multi_modal_projector = multi_modal_projector
        self.language_model = language_model

    @property
    def decoder(self) -> nn.Module:  # type: ignore[override]
        """The language model."""
        return self.language_model

    def embed(self, images: Tensor, ids: Tensor, mask: Tensor) -> Embedded:
        """As the parent."""
        cells = self.vision_tower(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        words, mask = embed_words(self.language_model.get_input_embeddings(), ids, mask)  # type: ignore[operator]
        seen, words = self.multi_modal_projector(cells, words)
        seen = seen + self.pos_embed
        tokens = torch.cat([seen, words.to(seen.dtype)], 1)
        return Embedded(tokens, torch.cat([mask.new_ones(seen.shape[:2]), mask], 1))


def image_positions(*shape: int) -> nn.Parameter:
    """Learnt positions of image tokens, the last axis their width."""
    return nn.Parameter(0.02 * torch.randn(*shape))


def rename_on_load(module: nn.Module, old: str, new: str) -> None:
    """Let a module take weights that were saved when one of them had another name in it."""

    def rename(_: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any) -> None:
        if prefix + old in state:
            state[prefix + new] = state.pop(prefix + old)

    module.register_load_state_dict_pre_hook(rename)


def attention_mask(mask: Tensor, queries: int, bidirectional: bool) -> Tensor:
    """Who sees whom, (B, 1, L + Q, L + Q), True where seen.

    Nobody sees padding; images and text see each other (or what is before them) and not the queries; queries see all.
    Padding sees itself, so that its softmax has something to weigh.

    Args:
        mask: (B, L), False where padded.
        queries: their number Q.
        bidirectional: whether images and text see what comes after them.
    """
    length = mask.shape[1]
    total = length + queries
    order = torch.ones(total, total, dtype=torch.bool, device=mask.device)
    order[:length, length:] = False
    if not bidirectional:
        order[:length, :length].tril_()
    allowed = order & torch.cat([mask, mask.new_ones(len(mask), queries)], 1)[:, None]
    return (allowed | torch.eye(total, dtype=torch.bool, device=mask.device))[:, None]


def count_positions(mask: Tensor, queries: int) -> Tensor:
    """Positions (B, L + Q) that do not count padding."""
    seen = torch.cat([mask, mask.new_ones(len(mask), queries)], 1)
    return (seen.cumsum(1) - 1).clamp(min=0)
