"""A backbone of the hub that is a vision-language model: run by its own forward, as it was pretrained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from rlspec.errors import ConfigError
from rlspec.vla.policies.backbone.backbone import Backbone, Hidden
from rlspec.vla.policies.backbone.settings import BackbonePolicyConfig
from rlspec.vla.policies.backbone.towers import load_part

DECODERS = ("language_model", "text_model")
VISION_TOWERS = ("vision_tower", "vision_model", "visual")
ROWS_OF_IMAGES = ("smolvlm", "idefics3")  # take (B, images, 3, H, W)
GRIDS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # take flat patches and their grid
KNOWN = (*ROWS_OF_IMAGES, *GRIDS, "llava", "paligemma", "gemma3")
"""Types whose hidden states a test compares with transformers' own; another one might run wrongly, and silently."""


class VisionLanguageBackbone(Backbone):
    """A vision-language model of transformers, without its output layer.

    It runs its own forward on image placeholders, text and placeholders of the queries, whose embeddings are put in
    their place: positions, masks, scales and features that go in between the layers are the model's own. What comes
    before does not see the queries; a query sees those before it.
    """

    vlm: Any

    def __init__(self, config: BackbonePolicyConfig) -> None:
        super().__init__()
        if config.bidirectional is not None:
            raise ConfigError(
                f"{config.type}: bidirectional={config.bidirectional}: a pretrained model sees as it was pretrained; "
                "leave it out"
            )
        whole = load_part(config, "vlm", AutoModelForImageTextToText)
        if whole.config.model_type not in KNOWN:
            raise ConfigError(
                f"{config.type}: a model of type {whole.config.model_type} has not been compared with its own forward; "
                f"known: {', '.join(sorted(KNOWN))}, or vision_name and text_name of its parts"
            )
        self.vlm = whole.model
        self._image_tokens: dict[torch.Size, int] = {}

    @property
    def decoder(self) -> nn.Module:  # type: ignore[override]
        """The language model inside."""
        return find_part(self.vlm, DECODERS)

    @property
    def vision_tower(self) -> nn.Module:
        """The vision tower inside."""
        return find_part(self.vlm, VISION_TOWERS)

    def forward(self, images: Tensor, ids: Tensor, mask: Tensor, queries: Tensor, first: First | None = None) -> Hidden:
        """As the parent; padding goes before everything, where no position counts it and no token sees it.

        Args:
            images: as the parent.
            ids: as the parent.
            mask: as the parent.
            queries: as the parent.
            first: tokens before the images, which count as part of the task; None: there are none.
        """
        images = images.to(self.vlm.dtype)
        count = 0 if first is None else first.mask.shape[1]
        before, after = self._placeholders(len(ids), count), self._placeholders(len(ids), len(queries))
        every = torch.cat([before, self._image_ids(images), ids, after], 1)
        seen = mask.new_ones(len(ids), every.shape[1] - len(queries))
        seen[:, seen.shape[1] - ids.shape[1] :] = mask
        if first is not None:
            seen[:, :count] = first.mask
        counted = torch.cat([seen, mask.new_ones(len(ids), len(queries))], 1)
        order = counted.long().argsort(dim=1, stable=True)
        every = every.gather(1, order)
        with self._in_place(queries, first, order):
            states = self.vlm(
                input_ids=every,
                attention_mask=counted.gather(1, order).long(),
                output_hidden_states=True,
                use_cache=False,
                **pixel_arguments(images, self.vlm.config),
                **self._kinds(every, len(queries)),
            ).hidden_states
        states = [_arranged(each, order.argsort(1)) for each in states]
        length = seen.shape[1]
        return Hidden(tuple(each[:, :length] for each in states), tuple(each[:, length:] for each in states), seen)

    def _image_ids(self, images: Tensor) -> Tensor:
        """Placeholders of each camera's tokens, between the model's marks of an image where its config has them."""
        config = self.vlm.config
        size = images.shape[-2:]
        if size not in self._image_tokens:
            with torch.no_grad():
                found = self.vlm.get_image_features(**pixel_arguments(images[:1, :1], config)).pooler_output
            self._image_tokens[size] = int(found[0].shape[0])
        marks = [[token] if (token := getattr(config, name, None)) is not None else [] for name in _MARKS]
        row = [*marks[0], *[config.image_token_id] * self._image_tokens[size], *marks[1]] * images.shape[1]
        return torch.tensor(row, device=images.device).expand(len(images), -1)

    def _placeholders(self, rows: int, queries: int) -> Tensor:
        """Ids of any text: the queries take their embeddings' place."""
        token = 1 if self.vlm.config.image_token_id == 0 else 0
        return torch.full((rows, queries), token, device=self.vlm.device)

    def _kinds(self, ids: Tensor, queries: int) -> dict[str, Tensor]:
        """What each token is, for the models that ask."""
        config = self.vlm.config
        image = (ids == config.image_token_id).int()
        if config.model_type in GRIDS:
            return {"mm_token_type_ids": image}
        if config.model_type == "gemma3":
            return {"token_type_ids": image}
        if config.model_type == "paligemma":  # 0: the prompt, which sees all of itself
            kinds = torch.zeros_like(image)
            kinds[:, kinds.shape[1] - queries :] = 1
            return {"token_type_ids": kinds}
        return {}

    @contextmanager
    def _in_place(self, queries: Tensor, first: First | None, order: Tensor) -> Iterator[None]:
        def put(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:  # noqa: ARG001
            rows = _arranged(output, order.argsort(1))
            before = rows[:, :0] if first is None else first.tokens.to(output.dtype)
            after = queries.to(output.dtype).expand(len(output), -1, -1)
            between = rows[:, before.shape[1] : rows.shape[1] - len(queries)]
            return _arranged(torch.cat([before, between, after], 1), order)

        handle = self.vlm.get_input_embeddings().register_forward_hook(put)
        try:
            yield
        finally:
            handle.remove()


class First(NamedTuple):
    """Tokens before everything else, (B, P, D), and which of them count, (B, P)."""

    tokens: Tensor
    mask: Tensor


def _arranged(rows: Tensor, order: Tensor) -> Tensor:
    return rows.gather(1, order[..., None].expand_as(rows))


_MARKS = ("vision_start_token_id", "vision_end_token_id")


def find_part(model: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """The first child of one of the names.

    Raises:
        ConfigError: if there is none.
    """
    for name in names:
        if isinstance(getattr(model, name, None), nn.Module):
            return getattr(model, name)
    raise ConfigError(f"{type(model).__name__} has none of {', '.join(names)}; this architecture is not supported")


def pixel_arguments(images: Tensor, config: Any) -> dict[str, Tensor]:
    """Images (B, cameras, 3, H, W) as the model's forward takes them."""
    if config.model_type in ROWS_OF_IMAGES:
        return {"pixel_values": images}
    if config.model_type in GRIDS:
        return patches(images.flatten(0, 1), config.vision_config)
    return {"pixel_values": images.flatten(0, 1)}


def patches(images: Tensor, config: Any) -> dict[str, Tensor]:
    """Qwen-VL's flat patches, in windows of `spatial_merge_size`, and the grid of each image.

    Raises:
        ConfigError: if the size is not a multiple of a window.
    """
    size, merge, frames = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    count, channels, height, width = images.shape
    if height % (size * merge) or width % (size * merge):
        raise ConfigError(f"image_size={height} must be a multiple of {size * merge} for this vision tower")
    rows, columns = height // size, width // size
    cut = images.reshape(count, channels, rows // merge, merge, size, columns // merge, merge, size)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None].expand(-1, -1, -1, -1, -1, -1, frames, -1, -1)
    grid = torch.tensor([[1, rows, columns]], device=images.device).expand(count, -1)
    return {"pixel_values": cut.reshape(count * rows * columns, -1), "image_grid_thw": grid}
