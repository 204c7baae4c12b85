"""A table seen by two cameras: cubes and plates of several colours, and a text that says which to go to.

The quick test of an architecture: the action is the way from the gripper to the named cube, or with the gripper closed
to the named plate. Whoever ignores the images, the text or the state cannot come close.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from lerobot.configs import FeatureType, PolicyFeature
from torch import Tensor

COLOURS = {
    "red": (0.85, 0.15, 0.15), "green": (0.15, 0.7, 0.2), "blue": (0.15, 0.25, 0.85), "yellow": (0.9, 0.85, 0.15),
    "purple": (0.6, 0.2, 0.7), "orange": (0.95, 0.55, 0.1),
}  # fmt: skip
CUBES, PLATES, CHUNK, ACTIONS, STATE = 3, 2, 8, 4, 3


@dataclass
class Scenes:
    """Batches of `Table`: images (N, 2, 3, S, S) uint8, texts, states (N, 3), actions (N, 8, 4)."""

    images: Tensor
    texts: list[str]
    states: Tensor
    actions: Tensor

    def batch(self, rows: Tensor) -> dict[str, object]:
        """As LeRobot's data loader gives it: float images."""
        images = self.images[rows].float() / 255
        return {
            "observation.images.external": images[:, 0], "observation.images.wrist": images[:, 1],
            "observation.state": self.states[rows], "action": self.actions[rows],
            "action_is_pad": torch.zeros(len(rows), CHUNK, dtype=torch.bool),
            "task": [self.texts[row] for row in rows.tolist()],
        }  # fmt: skip


def features(size: int = 96) -> tuple[dict[str, PolicyFeature], dict[str, PolicyFeature]]:
    """Input and output features."""
    cameras = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, size, size))
        for name in ("external", "wrist")
    }
    state = {"observation.state": PolicyFeature(FeatureType.STATE, (STATE,))}
    return cameras | state, {"action": PolicyFeature(FeatureType.ACTION, (ACTIONS,))}


def make_scenes(scenes: int, views: int, seed: int, size: int = 96) -> Scenes:
    """`scenes` tables with fixed cubes, plates and text, each with `views` places of the gripper."""
    generator = torch.Generator().manual_seed(seed)
    colours = torch.tensor(list(COLOURS.values()))
    names = list(COLOURS)
    count = CUBES + PLATES
    table = 0.35 + 0.25 * torch.rand(scenes, 3, 1, 1, generator=generator)
    spots = _apart(scenes, count, generator)
    order = torch.rand(scenes, len(names), generator=generator).argsort(1)
    cube_colours, plate_colours = order[:, :CUBES], order[:, -PLATES:]
    texts = [
        f"pick up the {names[cube_colours[row, 0]]} cube and place it on the {names[plate_colours[row, 0]]} plate"
        for row in range(scenes)
    ]
    paint = colours[torch.cat([cube_colours, plate_colours], 1)]
    repeat = torch.arange(scenes).repeat_interleave(views)
    total = scenes * views
    gripper = torch.rand(total, 2, generator=generator) * 1.6 - 0.8
    closed = (torch.rand(total, generator=generator) < 0.4).float()
    spots, paint, table = spots[repeat].clone(), paint[repeat], table[repeat]
    spots[:, 0] = torch.where(closed[:, None] > 0, gripper, spots[:, 0])  # a grasped cube is in the gripper
    goal = torch.where(closed[:, None] > 0, spots[:, CUBES], spots[:, 0])
    external = _draw(size, torch.zeros(total, 2), 1.0, table, spots, paint, gripper)
    wrist = _draw(size, gripper, 0.35, table, spots, paint, None)
    images = torch.stack([external, wrist], 1)
    images = images + 0.02 * torch.randn(images.shape, generator=generator)
    return Scenes(
        (images.clamp(0, 1) * 255).to(torch.uint8), [texts[row] for row in repeat.tolist()],
        torch.cat([gripper, closed[:, None]], 1), _plan(gripper, goal, closed),
    )  # fmt: skip


def _apart(scenes: int, count: int, generator: torch.Generator) -> Tensor:
    """Spots in [-0.8, 0.8]^2 that keep 0.3 apart."""
    spots = torch.rand(scenes, count, 2, generator=generator) * 1.6 - 0.8
    for _ in range(200):
        distance = torch.cdist(spots, spots) + torch.eye(count) * 9
        clash = (distance < 0.3).any(2)
        if not clash.any():
            break
        spots = torch.where(clash[..., None], torch.rand(spots.shape, generator=generator) * 1.6 - 0.8, spots)
    return spots


def _draw(
    size: int, centre: Tensor, scale: float, table: Tensor, spots: Tensor, paint: Tensor, gripper: Tensor | None
) -> Tensor:
    axis = torch.linspace(-1, 1, size) * scale
    x = axis[None, None, :] + centre[:, 0, None, None]
    y = axis[None, :, None] + centre[:, 1, None, None]
    image = table.expand(-1, -1, size, size).clone()
    for index in [*range(CUBES, CUBES + PLATES), *range(CUBES)]:
        dx, dy = x - spots[:, index, 0, None, None], y - spots[:, index, 1, None, None]
        inside = (dx.abs().maximum(dy.abs()) < 0.08) if index < CUBES else (dx**2 + dy**2 < 0.14**2)
        image = torch.where(inside[:, None], paint[:, index, :, None, None], image)
    if gripper is not None:
        dx, dy = x - gripper[:, 0, None, None], y - gripper[:, 1, None, None]
        ring = (dx**2 + dy**2 - 0.12**2).abs() < 0.006
        image = torch.where(ring[:, None], torch.tensor(0.05), image)
    return image


def _plan(gripper: Tensor, goal: Tensor, closed: Tensor) -> Tensor:
    """Eight steps of at most 0.1 to the goal; descent and gripper follow from the distance left."""
    steps, place = [], gripper.clone()
    for _ in range(CHUNK):
        way = goal - place
        move = way * (0.1 / way.norm(dim=1, keepdim=True).clamp(min=0.1))
        near = (way.norm(dim=1) < 0.05).float()
        steps.append(torch.cat([move / 0.1, near[:, None], torch.where(near > 0, 1 - closed, closed)[:, None]], 1))
        place = place + move
    return torch.stack(steps, 1)


def blind_error(scenes: Scenes) -> float:
    """L1 error of the best constant chunk: its median."""
    return float((scenes.actions - scenes.actions.median(0).values).abs().mean())
