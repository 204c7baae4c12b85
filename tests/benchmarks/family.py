"""Every rule on one small problem by one protocol: pretraining of a small Qwen3 on generated word problems.

    python tests/benchmarks/family.py --output tests/benchmarks/results/family.json

The plan, written before the first run. A Qwen3 of two layers reads word problems with their solutions, letter by
letter, for `STEPS` steps; the score is bits per letter of problems that it has not seen. Every arm tries five rates, a
factor of two apart, on a seed and problems of its own, and goes on beyond an end where the best rate lies there; then
come five fresh seeds at that rate. The learning rate rises for `WARMUP` steps and falls to 0 along a line. Settings are
the library's, so that steps are matched to AdamW's where a rule's can be. LoRA's rules have no adapter here and are
left out. "pion" is at the library's k_p of 0; its two arms with auto were added when the others had run.

Stated before: (1) every matrix rule beats AdamW on the mean, as in pretraining at large; (2) Pion, whose filter passes
few directions, ends behind Muon; (3) sgd ends last. Each run goes to a journal beside the output, and the same command
goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlspec.comparison.estimates import estimate, paired_differences
from rlspec.comparison.plan import Tune
from rlspec.comparison.tuning import tune
from rlspec.optim import build_optimizer
from rlspec.optim.rules import RULES
from rlspec.rlvr.data.words import LEVELS, generate

STEPS, WARMUP, BATCH, LENGTH = 150, 10, 8, 128
SEEDS, TUNING_SEED = (0, 1, 2, 3, 4), 100
TUNING = Tune(
    lr=[1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2],
    lr_of={rule: [1e-2, 3e-2, 1e-1, 3e-1, 1.0] for rule in ("sgd", "auon", "hybrid_auon")},  # as long as the gradient
    extend=6,
)
ARMS: Mapping[str, Mapping[str, Any]] = {
    **{rule: {"rule": rule} for rule, entry in RULES.items() if entry.pair is None},
    "muon, whole": {"rule": "muon", "split": "whole"},
    "pion, spectrally matched": {"rule": "pion", "adjust_lr": "match_spectral_adamw"},
    "pion, k_p auto": {"rule": "pion", "promotion_steps": "auto"},
    "pion, k_p auto, spectrally matched": {
        "rule": "pion",
        "adjust_lr": "match_spectral_adamw",
        "promotion_steps": "auto",
    },
}


@dataclass
class Journal:
    """Runs by arm, rate and seed, one JSON line each."""

    path: Path
    runs: dict[tuple[str, float, int], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                self._keep(json.loads(line))

    def _keep(self, run: dict[str, Any]) -> None:
        self.runs[run["arm"], run["lr"], run["seed"]] = run

    def bits(self, arm: str, lr: float, seed: int) -> float | None:
        """Of a run, which is trained if it is not there; None: it diverged."""
        if (arm, lr, seed) not in self.runs:
            started = time.process_time()
            bits = pretrain(ARMS[arm], lr, seed)
            run = {"arm": arm, "lr": lr, "seed": seed, "bits": bits, "seconds": round(time.process_time() - started, 2)}
            self._keep(run)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(run) + "\n")
        found: float | None = self.runs[arm, lr, seed]["bits"]
        return found


def letters(seed: int) -> torch.Tensor:
    """Problems of a seed with their solutions, as one line of ASCII codes."""
    text = "\n".join(f"{problem.text} {problem.solution}" for problem in generate(LEVELS, seed))
    return torch.tensor(list(text.encode("ascii")))


def pretrain(settings: Mapping[str, Any], lr: float, seed: int) -> float | None:
    """Bits per letter of unseen problems after `STEPS` steps; None where the loss is not finite."""
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=128, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=2 * LENGTH, tie_word_embeddings=False,
        )
    )  # fmt: skip
    optimizer = build_optimizer(model, lr=lr, **settings)
    text, windows = letters(seed), torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        share = min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))
        for group in optimizer.param_groups:
            group["lr"] = lr * share
        starts = torch.randint(len(text) - LENGTH - 1, (BATCH,), generator=windows)
        loss = _loss(model, torch.stack([text[start : start + LENGTH + 1] for start in starts]))
        if not math.isfinite(loss.item()):
            return None
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    unseen = letters(10_000 + seed)[: 64 * 2 * LENGTH].view(64, -1)
    with torch.no_grad():
        bits = _loss(model, unseen).item() / math.log(2)
    return bits if math.isfinite(bits) else None


def _loss(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    return cross_entropy(model(input_ids=ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())


def measure(journal: Journal, arms: Sequence[str]) -> dict[str, Any]:
    """Tune every arm, train its fresh seeds, and put the arms in order."""
    rows, scores = [], {}
    for arm in arms:

        def score(rates: Sequence[float], arm: str = arm) -> dict[float, list[float | None]]:
            found = {rate: journal.bits(arm, rate, TUNING_SEED) for rate in rates}
            return {rate: [None if bits is None else -bits] for rate, bits in found.items()}

        tuned = tune(TUNING, arm, score)
        runs = {} if tuned.best is None else {seed: journal.bits(arm, tuned.best, seed) for seed in SEEDS}
        scores[arm] = {seed: bits for seed, bits in runs.items() if bits is not None}
        tried = {f"{rate:g}": None if math.isinf(value) else -value for rate, value in tuned.scores.items()}
        rows.append({"arm": arm, "lr": tuned.best, "edge": tuned.edge, "tuning": tried, "bits": runs})
        print(f"{arm:<34}{tuned.best or 0:<9g}{' '.join(f'{bits:.3f}' for bits in scores[arm].values())}", flush=True)
    paired = paired_differences(scores, "adamw") if "adamw" in scores else {}
    for row in rows:
        found = estimate(list(scores[row["arm"]].values()), collapsed=0.0, paired=paired.get(row["arm"]))
        row["statistics"] = found and found.as_json()
    rows.sort(key=lambda row: row["statistics"]["mean"] if row["statistics"] else math.inf)
    return {"plan": __doc__, "machine": platform.platform(), "torch": torch.__version__, "arms": rows}


def render(rows: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table of the arms, the best first."""
    lines = ["| rule | rate | bits per letter | less AdamW's, by seed [95%] | p (Holm) |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        edge = f" ({row['edge']} tried)" if row["edge"] else ""
        cells = [row["arm"], f"{row['lr'] or 0:g}{edge}", "diverged", "", ""]
        if said := row["statistics"]:
            cells[2] = f"{said['mean']:.3f} [{said['student'][0]:.3f}, {said['student'][1]:.3f}]"
            if paired := said["paired"]:
                cells[3] = f"{paired['mean']:+.3f}"
                if paired["p_holm"] is not None:
                    cells[3] += f" [{paired['low']:+.3f}, {paired['high']:+.3f}]"
                    cells[4] = f"{paired['p_holm']:.2g}"
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="every rule on one small problem")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--output", type=Path, required=True, help="JSON; the journal stands beside it")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    given.output.parent.mkdir(parents=True, exist_ok=True)
    report = measure(Journal(given.output.with_suffix(".jsonl")), given.arms)
    given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(render(report["arms"]))


if __name__ == "__main__":
    main()
