"""Training commutes with every symmetry of the loss: to move the weights and then train is to train and then move them.

Two steps of whole models, so that the momentum is in it. Modules that compute in float32 whatever the dtype are made
to compute in float64; without that the comparison ends at 1e-7.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from family_cases import TEXT, VISION, pi05, pi_gemma, projected, seeded
from torch import Tensor, nn

from rlspec.optim import SpectralOptimizer, build_optimizer

pytestmark = pytest.mark.usefixtures("nothing_in_float32")

EXACT, BROKEN = 1e-10, 1e-4  # relative to what training changed; measured 1e-13 and, where a symmetry is broken, 1e-1
LACKING_RANK = 1e-6
"""For the whole pi0.5, where inverse roots meet gradients that lack rank (of the flow's time in sines, of what comes
before a layer norm): their null directions are rounding, measured 1e-7. All other weights agree to 1e-13."""
GROUPS, SIZE, EXPERTS, VOCABULARY = 2, 16, 4, 50
WIDTH, NEURONS = TEXT["hidden_size"], TEXT["intermediate_size"]
PRESETS = {"symmetric": "muon", "symmetric_pion": "pion"}

Weights = dict[str, Tensor]
Move = Callable[[Weights], Weights]
"""A symmetry: it gives new tensors for those that it moves."""


def decoder(model_type: str, **changes) -> nn.Module:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**(TEXT | {"pad_token_id": None} | changes)))
    if "num_experts_per_tok" in changes:
        model.set_experts_implementation("eager")
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "qwen3": lambda: decoder("qwen3", tie_word_embeddings=False),
    "qwen3_tied": lambda: decoder("qwen3", tie_word_embeddings=True),
    "smollm": lambda: decoder("llama", tie_word_embeddings=True),
    "llama": lambda: decoder("llama", tie_word_embeddings=False),
    "mixtral": lambda: decoder(
        "mixtral", num_local_experts=EXPERTS, num_experts_per_tok=2, tie_word_embeddings=False, sliding_window=None
    ),
    "pi05_expert": pi_gemma,
    "pi05": pi05,
}
DECODERS = [name for name in MODELS if not name.startswith("pi05")]


def build(name: str, *, gains: bool = True) -> nn.Module:
    """In float64, all drawn anew; without `gains` those of the residual stream are equal and frozen."""
    torch.manual_seed(0)
    model = MODELS[name]().double().eval()
    for path, param in model.named_parameters():
        vector = param.ndim < 2
        nn.init.normal_(param, 1.0 if vector else 0.0, 0.2 if vector else param.shape[-1] ** -0.5)
        if not gains and re.search(r"layernorm\.weight$|model\.norm\.weight$|v_proj\.bias$", path):
            nn.init.ones_(param).requires_grad_(False)
        if path.endswith("k_proj.bias"):
            param.requires_grad_(False)  # softmax takes away what all scores share: its gradient is rounding
        if not gains and path.endswith("v_proj.bias"):
            nn.init.zeros_(param)  # its rule is elementwise
    return model


def loss_of(model: nn.Module, order: Tensor) -> Tensor:
    """Of a batch with more tokens than a hidden layer is wide, so that no gradient lacks rank; `order` renames them."""
    ids = order[torch.randint(3, VOCABULARY, (8, 64), generator=torch.Generator().manual_seed(1))]
    if isinstance(model, nn.ModuleDict):
        states = model["gemma_expert"].model(inputs_embeds=seeded((8, 64, WIDTH)), adarms_cond=seeded((8, WIDTH)))
        return projected(states.last_hidden_state)
    if hasattr(model, "action_in_proj"):  # more samples than its time's layers are wide
        ids = ids.flatten()[: 80 * 6].unflatten(0, (80, 6))
        images, actions, noise = seeded((80, 3, 32, 32), 2), seeded((80, 4, 20), 3), seeded((80, 4, 20), 4)
        time, seen = torch.linspace(0.1, 0.9, 80, dtype=torch.float64), torch.ones(80, dtype=torch.bool)
        return projected(model([images], [seen], ids, torch.ones_like(ids).bool(), actions, noise, time))
    return model(input_ids=ids, labels=ids).loss


def train(model: nn.Module, preset: str, order: Tensor, change: Callable[[SpectralOptimizer], None] | None) -> Weights:
    rule, roles = (PRESETS[preset], "symmetric") if preset in PRESETS else (preset, None)
    optimizer = build_optimizer(model, rule=rule, roles=roles, lr=1e-2, nesterov=True, promotion_steps="auto")
    if change is not None:
        change(optimizer)
    for _ in range(2):
        model.zero_grad()
        loss_of(model, order).backward()
        optimizer.step()
    return weights_of(model)


def weights_of(model: nn.Module) -> Weights:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


HERE = torch.arange(VOCABULARY)
"""Every token by its own name."""


def trained_from(
    model: nn.Module, preset: str, change: Callable[[SpectralOptimizer], None] | None
) -> tuple[Weights, list[str], int]:
    """Weights after training, the names of those that had a gradient, and how many could have had one."""
    trained = train(model, preset, HERE, change)
    reached = [path for path, param in model.named_parameters() if param.grad is not None and param.grad.any()]
    return trained, reached, sum(param.requires_grad for param in model.parameters())


@cache
def trained_once(name: str, preset: str, *, gains: bool) -> tuple[Weights, list[str], int]:
    """What is moved after training; every move begins from it."""
    return trained_from(build(name, gains=gains), preset, None)


def misfit(
    name: str, preset: str, move: Move, *, order: Tensor | None = None, gains: bool = True,
    change: Callable[[SpectralOptimizer], None] | None = None,
) -> float:  # fmt: skip
    """The largest distance between moved and trained, and trained and moved, relative to what training changed.

    The move is held to be a symmetry first: it changes weights, and no loss.
    """
    order = HERE if order is None else order
    other = build(name, gains=gains)
    start = weights_of(other)
    moved = start | move(start)
    with torch.no_grad():
        before = loss_of(other, HERE)
        for path, param in other.named_parameters():
            param.copy_(moved[path])
        after = loss_of(other, order)
    assert any((moved[path] - start[path]).norm() > 0.1 * start[path].norm() for path in start)
    assert abs(after - before) < 1e-12 * abs(before)
    if change is None:
        unmoved, reached, moving = trained_once(name, preset, gains=gains)
    else:
        unmoved, reached, moving = trained_from(build(name, gains=gains), preset, change)
    trained = unmoved | move(unmoved)
    compared = train(other, preset, order, change)
    size = {path: (compared[path] - moved[path]).norm() for path in start}
    assert all(size[path] > 0 for path in reached) and len(reached) > 0.8 * moving
    return max(float((trained[path] - compared[path]).norm() / size[path]) for path in start if size[path] > 0)


def drawn(size: int, seed: int) -> Tensor:
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed))


def rotation(size: int, seed: int) -> Tensor:
    return torch.linalg.qr(seeded((size, size), seed))[0]


def named(weights: Weights, *words: str) -> Iterator[tuple[str, Tensor]]:
    """Of language and actions; the tower of images has moves of its own."""
    found = ((name, weight) for name, weight in weights.items() if re.search(rf"(?:{'|'.join(words)})$", name))
    return ((name, weight) for name, weight in found if "vision" not in name)


def rows(weight: Tensor, heads: int) -> Tensor:
    return weight.unflatten(0, (heads, -1))


def rotate_values(weights: Weights) -> Weights:
    """v -> A v, o -> o A^T, one A for every head of keys and values."""
    turns = torch.stack([rotation(SIZE, seed) for seed in range(GROUPS)])
    moved = {name: (turns @ rows(weight, GROUPS)).flatten(0, 1) for name, weight in named(weights, r"v_proj\.weight")}
    for name, weight in named(weights, r"o_proj\.weight"):
        heads = weight.unflatten(1, (-1, SIZE))
        each = turns.repeat_interleave(heads.shape[1] // GROUPS, 0)
        moved[name] = torch.einsum("ohi,hji->ohj", heads, each).flatten(1)
    return moved


def permute_heads(weights: Weights, groups: list[int], step: int) -> Weights:
    """Groups of heads change places, and, at step -1, in every group the heads of queries."""

    def moved_queries(heads: Tensor) -> Tensor:
        return heads.unflatten(0, (GROUPS, -1))[groups].flip(1 if step < 0 else ()).flatten(0, 1)

    moved = {}
    for name, weight in named(weights, r"q_proj\.weight"):
        moved[name] = moved_queries(weight.unflatten(0, (-1, SIZE))).flatten(0, 1)
    for name, weight in named(weights, r"[kv]_proj\.weight"):
        moved[name] = rows(weight, GROUPS)[groups].flatten(0, 1)
    for name, weight in named(weights, r"o_proj\.weight"):
        moved[name] = moved_queries(weight.unflatten(1, (-1, SIZE)).movedim(1, 0)).movedim(0, 1).flatten(1)
    return moved


def permute_neurons(weights: Weights) -> Weights:
    """Neurons change places, and signs of up against those of down; of every expert in its own order."""
    order, signs = drawn(NEURONS, 3), seeded((NEURONS,), 4).sign()
    moved = {name: weight[order] for name, weight in named(weights, r"gate_proj\.weight")}
    moved |= {name: (signs[:, None] * weight)[order] for name, weight in named(weights, r"up_proj\.weight")}
    moved |= {name: (weight * signs)[:, order] for name, weight in named(weights, r"mlp\.down_proj\.weight")}
    for name, weight in named(weights, r"experts\.gate_up_proj"):
        gate, up = weight.chunk(2, 1)
        orders = [drawn(NEURONS, expert) for expert in range(EXPERTS)]
        parts = [torch.cat([gate[e][orders[e]], (signs[:, None] * up[e])[orders[e]]]) for e in range(EXPERTS)]
        moved[name] = torch.stack(parts)
        below = name.replace("gate_up_proj", "down_proj")
        moved[below] = torch.stack([(weights[below][e] * signs)[:, orders[e]] for e in range(EXPERTS)])
    return moved


def permute_experts(weights: Weights) -> Weights:
    order = torch.tensor([2, 0, 3, 1])
    return {name: weight[order] for name, weight in named(weights, r"experts\.\w+_proj", r"mlp\.gate\.weight")}


TOKENS = torch.cat([torch.arange(3), 3 + drawn(VOCABULARY - 3, 5)])


def permute_tokens(weights: Weights) -> Weights:
    """The token that was i is TOKENS[i]."""
    old = TOKENS.argsort()
    return {name: weight[old] for name, weight in named(weights, r"embed_tokens\.weight", r"lm_head\.weight")}


def turn_planes(weights: Weights) -> Weights:
    """Queries and keys of a group turn alike in every plane (i, i + size / 2), as rotary positions do."""
    angles = seeded((GROUPS, SIZE // 2), 6)
    moved = {}
    for name, weight in named(weights, r"[qk]_proj\.weight"):
        heads = len(weight) // SIZE
        first, second = rows(weight, heads).chunk(2, 1)
        cos, sin = (part.repeat_interleave(heads // GROUPS, 0)[..., None] for part in (angles.cos(), angles.sin()))
        moved[name] = torch.cat([cos * first - sin * second, sin * first + cos * second], 1).flatten(0, 1)
    return moved


def turn_residual(weights: Weights, turn: Tensor) -> Weights:
    """Every state of the residual stream is multiplied by `turn`; gains go along, where it is a permutation."""
    moved = {}
    readers = (
        r"embed_tokens\.weight",
        r"lm_head\.weight",
        r"[qkv]_proj\.weight",
        r"(?:gate|up|gate_up)_proj(?:\.weight)?",
        r"action_out_proj\.weight",
    )
    for name, weight in named(weights, *readers, r"mlp\.gate\.weight"):
        moved[name] = weight @ turn.T
    entries = (r"multi_modal_projector\.linear\.\w+", r"action_in_proj\.\w+")
    for name, weight in named(weights, r"o_proj\.weight", r"down_proj(?:\.weight)?", *entries):
        moved[name] = turn @ weight
    for name, weight in named(weights, r"norm\.dense\.\w+"):
        scale, shift, gate = weight.chunk(3)
        moved[name] = torch.cat([turn.abs() @ scale, turn @ shift, turn.abs() @ gate])
    for name, weight in named(weights, r"layernorm\.weight", r"model\.norm\.weight"):
        moved[name] = turn.abs() @ weight if turn.count_nonzero() == WIDTH else weight
    return moved


def permute_residual(weights: Weights) -> Weights:
    return turn_residual(weights, torch.eye(WIDTH, dtype=torch.float64)[drawn(WIDTH, 8)] * seeded((WIDTH,), 9).sign())


def rotate_residual(weights: Weights) -> Weights:
    return turn_residual(weights, rotation(WIDTH, 10))


def swap_queries(weights: Weights) -> Weights:
    return permute_heads(weights, [0, 1], -1)


def swap_groups(weights: Weights) -> Weights:
    return permute_heads(weights, [1, 0], 1)


IMAGE_HEADS, IMAGE_WIDTH, IMAGE_NEURONS = (
    VISION[key] for key in ("num_attention_heads", "hidden_size", "intermediate_size")
)


def tower(weights: Weights, name: str) -> tuple[str, Tensor]:
    (path,) = (path for path in weights if path.endswith(f"vision_model.{name}"))
    return path, weights[path]


def permute_images(weights: Weights) -> Weights:
    """Heads, neurons and states of the tower of images change places, and the columns that read it."""
    heads, neurons, states = drawn(IMAGE_HEADS, 11), drawn(IMAGE_NEURONS, 12), drawn(IMAGE_WIDTH, 13)
    rows_of = torch.arange(IMAGE_WIDTH).unflatten(0, (IMAGE_HEADS, -1))[heads].flatten()
    everything = slice(None)
    into: dict[str, tuple[Any, Any]] = {
        r"(?:patch_embedding\.\w+|out_proj\.bias|fc2\.bias|layer_?norm\d?\.\w+)": (states, everything),
        r"position_embedding\.weight": (everything, states),
        r"[qkv]_proj\.\w+": (rows_of, states),
        r"out_proj\.weight": (states, rows_of),
        r"fc1\.\w+": (neurons, states),
        r"fc2\.weight": (states, neurons),
    }
    moved = {}
    for name, weight in weights.items():
        if "multi_modal_projector.linear.weight" in name:
            moved[name] = weight[:, states]
        for words, (rows_to, columns_to) in into.items() if "vision" in name else ():
            if re.search(rf"{words}$", name):
                moved[name] = weight[rows_to] if weight.ndim == 1 else weight[rows_to][:, columns_to]
    return moved


def rotate_image_values(weights: Weights) -> Weights:
    turns = torch.stack([rotation(IMAGE_WIDTH // IMAGE_HEADS, seed) for seed in range(IMAGE_HEADS)])
    value, v = tower(weights, "encoder.layers.0.self_attn.v_proj.weight")
    output, o = tower(weights, "encoder.layers.0.self_attn.out_proj.weight")
    mixed = torch.einsum("ohi,hji->ohj", o.unflatten(1, (IMAGE_HEADS, -1)), turns).flatten(1)
    return {value: (turns @ rows(v, IMAGE_HEADS)).flatten(0, 1), output: mixed}


def permute_time(weights: Weights) -> Weights:
    """Neurons of the flow's time, and the numbers that condition the norms."""
    neurons, condition = drawn(WIDTH, 14), drawn(WIDTH, 15)
    moved = {name: weight[neurons] for name, weight in named(weights, r"time_mlp_in\.\w+")}
    for name, weight in named(weights, r"time_mlp_out\.\w+"):
        moved[name] = weight[condition] if weight.ndim == 1 else weight[condition][:, neurons]
    return moved | {name: weight[:, condition] for name, weight in named(weights, r"norm\.dense\.weight")}


every_preset = pytest.mark.parametrize("preset", PRESETS)
SPANNING = {
    ("qwen3_tied", "symmetric"),
    ("llama", "symmetric_pion"),
    ("mixtral", "symmetric"),
    ("pi05_expert", "symmetric_pion"),
}
"""By default: norms of heads or none, tied or not, experts, fused projections; each preset with and without them."""


def models_and_presets(names: list[str]) -> Any:
    slow = pytest.mark.slow
    pairs = [(name, preset) for name in names for preset in PRESETS]
    return pytest.mark.parametrize(
        ("name", "preset"), [pytest.param(*pair, marks=[] if pair in SPANNING else [slow]) for pair in pairs]
    )


SWAPS = [swap_queries, swap_groups, permute_neurons]
OF_PI05 = [
    rotate_values,
    permute_neurons,
    permute_images,
    rotate_image_values,
    permute_time,
    permute_residual,
    turn_planes,
]


@models_and_presets([*DECODERS, "pi05_expert"])
@pytest.mark.parametrize("move", [rotate_values, *SWAPS], ids=lambda move: move.__name__)
def test_training_commutes_with_the_symmetries_of_heads_and_neurons(name: str, move: Move, preset: str) -> None:
    assert misfit(name, preset, move) < EXACT


@pytest.mark.parametrize("move", OF_PI05, ids=lambda move: move.__name__)
def test_training_of_the_whole_pi05_commutes_with_its_symmetries(move: Move) -> None:
    assert misfit("pi05", "symmetric", move, gains=move is not rotate_image_values) < LACKING_RANK


@pytest.mark.parametrize("move", [rotate_values, rotate_image_values], ids=lambda move: move.__name__)
def test_adamw_on_the_whole_pi05_does_not(move: Move) -> None:
    assert misfit("pi05", "adamw", move, gains=move is not rotate_image_values) > BROKEN


@models_and_presets(DECODERS)
def test_training_commutes_with_new_names_of_tokens(name: str, preset: str) -> None:
    assert misfit(name, preset, permute_tokens, order=TOKENS) < EXACT


@models_and_presets(DECODERS)
def test_training_commutes_with_signed_permutations_of_the_residual_stream(name: str, preset: str) -> None:
    assert misfit(name, preset, permute_residual) < EXACT


@models_and_presets(DECODERS)
def test_training_commutes_with_rotations_of_the_residual_stream_where_gains_are_equal(name: str, preset: str) -> None:
    assert misfit(name, preset, rotate_residual, gains=False) < EXACT


@models_and_presets(["smollm", "llama", "mixtral"])
def test_training_commutes_with_planes_of_queries_and_keys_without_norms(name: str, preset: str) -> None:
    assert misfit(name, preset, turn_planes) < EXACT


@every_preset
def test_training_commutes_with_permutations_of_experts(preset: str) -> None:
    assert misfit("mixtral", preset, permute_experts) < EXACT


@pytest.mark.parametrize("name", [pytest.param("qwen3", marks=pytest.mark.slow), "qwen3_tied", "mixtral"])
def test_adamw_commutes_with_what_changes_places_and_with_nothing_that_turns(name: str) -> None:
    for move in [*SWAPS, permute_residual]:
        assert misfit(name, "adamw", move) < EXACT
    assert misfit(name, "adamw", permute_tokens, order=TOKENS) < EXACT
    assert misfit(name, "adamw", rotate_values) > BROKEN
    assert misfit(name, "adamw", rotate_residual, gains=False) > BROKEN


def with_heads(role: str, factor: int) -> Callable[[SpectralOptimizer], None]:
    def change(optimizer: SpectralOptimizer) -> None:
        groups = [group for group in optimizer.param_groups if group["role"].endswith(role)]
        assert groups
        for group in groups:
            group["num_heads"] *= factor

    return change


@models_and_presets(["qwen3_tied", "llama", "mixtral", "pi05_expert"])
def test_half_heads_do_not_commute_with_rotations_of_heads(name: str, preset: str) -> None:
    for role in ("attention.v", "attention.o"):
        assert misfit(name, preset, rotate_values, change=with_heads(role, 2)) > BROKEN


@pytest.mark.parametrize(
    ("rule", "role", "move"),
    [
        ("row_norm", "attention.v", rotate_values),
        ("normuon", "attention.v", rotate_values),
        ("column_norm", "embed", rotate_residual),
        ("row_norm", "mlp.down", rotate_residual),
    ],
)
def test_a_rule_of_too_small_a_group_does_not_commute(rule: str, role: str, move: Move) -> None:
    def change(optimizer: SpectralOptimizer) -> None:
        for group in optimizer.param_groups:
            if group["role"] == role:
                group["rule"] = rule

    assert misfit("llama", "symmetric", move, gains=move is not rotate_residual, change=change) > BROKEN
