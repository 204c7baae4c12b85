"""Draw the pictures of README.md: from a real symmetry map, and from the folders of two runs.

    python tests/benchmarks/pictures.py                                      # the symmetry map
    python -m rlspec.train recipe=grpo_math seed=0 run=sums
    python tests/benchmarks/pictures.py learning=checkpoints/sums            # its learning curve
    python -m rlspec.train recipe=vla_franka run=table
    python tests/benchmarks/pictures.py franka=checkpoints/table             # its policy at work

They go to tests/benchmarks/pictures, or where out=DIR says. White behind them, so that they can be read in dark mode
too; large letters, because a phone shows them a third as wide.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch, Rectangle
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from rlspec.optim import SpectralOptimizer, symmetry_map
from rlspec.optim.map.spec import ParameterSpec

OUT = Path(__file__).parent / "pictures"
COLOURS = {"muon": "#2f6fde", "pion": "#e8710a", "adamw": "#9aa5b1"}
INK = "#1f2933"
FILM, KEPT, SCENES = (360, 480), 2, 3  # height and width in pixels, every second step, episodes
plt.rcParams.update(
    {"font.size": 15, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
)


# Which update every block gets


def draw_symmetry(path: Path) -> None:
    """One layer of each part of a tiny SmolVLA, every matrix cut into the blocks that are updated by themselves."""
    specs = tiny_smolvla()
    figure = plt.figure(figsize=(8, 8.6))
    parts, cards = figure.subfigures(2, 1, height_ratios=(1.6, 1))
    axes = parts.subplots(1, 3, gridspec_kw={"left": 0.01, "right": 0.99, "top": 0.93, "bottom": 0.01, "wspace": 0.04})
    titles = {"vision": "vision tower", "language": "language model", "action": "action expert"}
    for axis, (modality, title) in zip(axes, titles.items(), strict=True):
        draw_part(axis, title, one_layer(specs, modality))
    draw_cards(cards)
    figure.savefig(path, dpi=150, facecolor="white")
    plt.close(figure)


def tiny_smolvla() -> tuple[ParameterSpec, ...]:
    """The map that `roles=vla` gives to all parameters of a small SmolVLA."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class, make_policy_config

    sys.path.append(str(Path(__file__).parents[1] / "vla"))
    from tiny_smolvla import tiny_settings, write_tiny_vlm

    import rlspec.vla.policies  # noqa: F401  # registers them

    with tempfile.TemporaryDirectory() as folder:
        settings = tiny_settings(write_tiny_vlm(Path(folder) / "vlm"))
        settings |= {"train_expert_only": False, "freeze_vision_encoder": False, "device": "cpu"}
        config = make_policy_config("rlspec_smolvla", **settings)
        config.input_features = {
            "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
            "observation.images.wrist": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
        }
        config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
        return symmetry_map(get_policy_class("rlspec_smolvla")(config), rule="muon", roles="vla").specs


def one_layer(specs: Iterable[ParameterSpec], modality: str) -> list[ParameterSpec]:
    """The first parameter of every role of a part; roles repeat from layer to layer."""
    found = {spec.role: spec for spec in reversed(list(specs)) if spec.modality == modality}
    perceptron = ("gate", "up", "down") if "mlp.gate" in found else ("fc1", "fc2")
    order = (
        *(f"attention.{name}" for name in "qkvo"),
        *(f"mlp.{name}" for name in perceptron),
        "embed",
        "output",
        "norm",
    )
    return [found[role] for role in order if role in found]


def draw_part(axis: Axes, title: str, specs: Sequence[ParameterSpec]) -> None:
    """Matrices in rows, cut along their blocks, coloured by their rule."""
    axis.set(xlim=(0, 10), ylim=(0, 10), xticks=[], yticks=[])
    axis.add_patch(FancyBboxPatch((0.5, 0.5), 9, 9, boxstyle="round,rounding_size=0.5", fc="#f0f3f7", ec="none"))
    axis.set_frame_on(False)
    axis.set_title(title, fontsize=17)
    height = 9.2 / len(specs)
    for row, spec in enumerate(specs):
        middle = 9.6 - (row + 0.5) * height
        axis.text(0.6, middle, spec.role.rpartition(".")[2], va="center", fontsize=15)
        tall = 0.74 * height if len(spec.shape) > 1 else 0.12 * height
        draw_matrix(axis, spec, (4.2, middle - tall / 2), (5.2, tall))


def draw_matrix(axis: Axes, spec: ParameterSpec, corner: tuple[float, float], size: tuple[float, float]) -> None:
    """One parameter, cut along its blocks; a vector is a line."""
    cuts = [1, 1]
    cuts[1 - spec.head_axis] = spec.num_heads if spec.matrices else 1
    width, height = (side / count for side, count in zip(size, cuts, strict=True))
    for column in range(cuts[0]):
        for row in range(cuts[1]):
            place = (corner[0] + column * width, corner[1] + row * height)
            axis.add_patch(Rectangle(place, width, height, fc=COLOURS[spec.rule], ec="#f0f3f7", lw=2))


def draw_cards(figure: Any) -> None:
    """What each rule makes of one and the same gradient's singular values: computed, not sketched."""
    gradient = low_rank_gradient()
    grid = {"left": 0.06, "right": 0.99, "top": 0.74, "bottom": 0.17, "wspace": 0.1}
    axes = figure.subplots(1, 3, sharey=True, gridspec_kw=grid)
    says = {
        "muon": "Muon, per head:\nall directions alike",
        "pion": "Pion, whole:\nthe strong ones only",
        "adamw": "AdamW:\nentry by entry",
    }
    for axis, (rule, words) in zip(axes, says.items(), strict=True):
        before, after = (torch.linalg.svdvals(matrix) for matrix in (gradient, update(rule, gradient)))
        where = np.arange(len(before))
        axis.bar(where, after / after.max(), color=COLOURS[rule], width=0.86, label="its update")
        axis.plot(where, before / before.max(), color=INK, lw=3, label="a gradient")
        axis.set(xticks=[], yticks=[], ylim=(0, 1.1))
        axis.set_title(words, fontsize=15)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("how far")
    axes[2].legend(frameon=False, fontsize=15, loc="upper right")
    figure.supxlabel("directions (singular values)", fontsize=15, y=0.03)


def low_rank_gradient() -> torch.Tensor:
    """A few directions and noise, as policy gradients are."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(24, 24, generator=generator))[0] for _ in range(2))
    strengths = torch.tensor([1.0, 0.7, 0.45] + [0.16 * 0.93**i for i in range(21)])
    return left @ torch.diag(strengths) @ right


def update(rule: str, gradient: torch.Tensor) -> torch.Tensor:
    """The first step of a rule."""
    weight = torch.nn.Parameter(torch.zeros_like(gradient))
    options = {"promotion_steps": 2} if rule == "pion" else {}
    optimizer = SpectralOptimizer([weight], rule=rule, lr=1.0, weight_decay=0.0, **options)
    weight.grad = gradient
    optimizer.step()
    return weight.detach()


# The learning curve of a run


def draw_learning(run: Path, path: Path) -> None:
    """Reward of every step, and accuracy on held-out problems before and after."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps, rewards = zip(*((row["step"], 100 * row["reward"]) for row in rows if "reward" in row), strict=True)
    name = next(key for row in rows for key in row if key.endswith("/sampled_pass_at_1"))
    held_out = [(row["step"], 100 * row[name]) for row in rows if name in row]
    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    axis.plot(steps, rewards, color=COLOURS["pion"], lw=1.2, alpha=0.45)
    axis.plot(steps, smooth(rewards), color=COLOURS["pion"], lw=3, label="while training (mean of 9 steps)")
    axis.plot(*zip(*held_out, strict=True), "o--", color=COLOURS["muon"], ms=12, lw=1.5, label="held-out problems")
    for step, value in (held_out[0], held_out[-1]):
        side = {"ha": "left", "xytext": (4, -26)} if step == 0 else {"ha": "right", "xytext": (4, -30)}
        axis.annotate(f"{value:.1f}%", (step, value), textcoords="offset points", fontsize=18, weight="bold", **side)
    axis.set(xlabel="optimizer step", ylabel="right answers, percent", ylim=(25, 100), xlim=(-2, max(steps) + 3))
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=150, facecolor="white")
    plt.close(figure)


def smooth(values: Sequence[float], window: int = 9) -> list[float]:
    """Running means, of fewer values at both ends."""
    half = window // 2
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]


# The trained policy at work


def draw_franka(run: Path, path: Path) -> None:
    """A film of the scenes that follow the evaluation's own, one after the other, with whatever comes of them."""
    from rlspec.checkpoint import find_weights
    from rlspec.config.load import load_vla_recipe
    from rlspec.vla.evaluation.episodes import EpisodePlan
    from rlspec.vla.evaluation.policy_actor import PolicySource, load_policy
    from rlspec.vla.evaluation.rollout import rollout
    from rlspec.vla.evaluation.simulator import Simulator

    recipe = load_vla_recipe([f"recipe={run / 'recipe.yaml'}"])
    assert recipe.env is not None
    options = {**recipe.env.options, "render_mode": "rgb_array", "render_size": FILM}
    task = recipe.env.tasks[0]
    env = Simulator(recipe.env.suite, options).make(task)
    actor = load_policy(PolicySource(find_weights(str(run)), device="cpu"))
    film = Film(env)
    for index in range(SCENES):
        seed = recipe.evaluation.seed + recipe.evaluation.episodes + index
        episode = rollout(env, actor, EpisodePlan(task, index, seed), film=film)
        print(f"seed {seed}: {'success' if episode.success else episode.failure} after {episode.steps} steps")
        film.rest()
    film.save(path)


class Film:
    """What a camera of its own sees of every second step, with the instruction; the policy's are smaller."""

    def __init__(self, env: Any) -> None:
        self._env, self._steps = env, 0
        self._frames: list[Image.Image] = []
        self._milliseconds: list[int] = []

    def add(self, _: dict[str, NDArray[np.uint8]]) -> None:
        """One step of the simulation."""
        self._steps += 1
        if self._steps % KEPT:
            return
        frame = Image.fromarray(self._env.render())
        pen = ImageDraw.Draw(frame)
        pen.rectangle((0, 0, frame.width, 26), fill=INK)
        pen.text((8, 4), self._env.unwrapped.instruction, font=ImageFont.load_default(15), fill="white")
        self._frames.append(frame.quantize(64, dither=Image.Dither.NONE))
        self._milliseconds.append(round(KEPT * 1000 / self._env.unwrapped.control_hz))

    def rest(self) -> None:
        """The last picture stays for a second."""
        self._milliseconds[-1] = 1000

    def save(self, path: Path) -> None:
        """Write all frames, which repeat for ever."""
        first, *others = self._frames
        first.save(path, save_all=True, append_images=others, duration=self._milliseconds, loop=0, optimize=True)


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    out = Path(given.pop("out", OUT))
    out.mkdir(parents=True, exist_ok=True)
    if "learning" in given:
        draw_learning(Path(given["learning"]), out / "learning.png")
    if "franka" in given:
        draw_franka(Path(given["franka"]), out / "franka.gif")
    if not given:
        draw_symmetry(out / "symmetry.png")


if __name__ == "__main__":
    main(sys.argv[1:])
