"""What trials say: success with Wilson intervals, and policies paired on the scenes that they share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from rlspec.comparison.estimates import holm
from rlspec.deploy.trials.plan import TOGETHER
from rlspec.intervals import Interval, t_interval, wilson_interval

ALPHA = 0.05


@dataclass(frozen=True)
class TrialResult:
    """Of a trial that counts: `credit` 0 to 1; how often the robot stopped, and whether the operator ended it."""

    policy: str
    task: str
    scene: int
    credit: float
    stops: int = 0
    recoveries: int = 0
    intervened: bool = False

    @property
    def success(self) -> bool:
        """Whether all of the task was done."""
        return self.credit == 1.0


@dataclass(frozen=True)
class PairedPolicies:
    """Two policies on the scenes that both have tried.

    Attributes:
        first, second: Names.
        scenes: That both have tried.
        only_first, only_second: Scenes on which the one succeeded and the other did not.
        credit: Mean difference of credits, first less second, and its 95% interval (Student's).
        p: Exact McNemar test, two-sided.
        evidence: e-value of the sequential test; `decided` where it exceeds the rule's threshold.
    """

    first: str
    second: str
    scenes: int
    only_first: int
    only_second: int
    credit: tuple[float, Interval]
    p: float
    evidence: float


def sign_evidence(wins: int, losses: int) -> float:
    """e-value against "each is as often the better one": valid whenever one looks (Ville's inequality).

    The likelihood of the discordant scenes under a share of wins that is uniform on [0, 1], over that under 1/2:
    2^n B(wins + 1, losses + 1), n their number. By chance it ever exceeds 1/alpha with probability alpha at most.
    """
    n = wins + losses
    try:
        return 2**n / ((n + 1) * math.comb(n, wins))
    except OverflowError:  # of a thousand scenes and more
        return math.inf


def mcnemar(wins: int, losses: int) -> float:
    """Exact two-sided p-value of the discordant pairs: binomial with 1/2."""
    n, least = wins + losses, min(wins, losses)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n)


def pair_up(results: Sequence[TrialResult], policies: Sequence[str]) -> list[PairedPolicies]:
    """Every two policies."""
    found = []
    by_scene = {(each.policy, each.task, each.scene): each for each in results}
    for first, second in combinations(policies, 2):
        tried = [{(task, scene) for who, task, scene in by_scene if who == policy} for policy in (first, second)]
        scenes = sorted(tried[0] & tried[1])
        ones = [(by_scene[first, *scene], by_scene[second, *scene]) for scene in scenes]
        wins = sum(a.success and not b.success for a, b in ones)
        losses = sum(b.success and not a.success for a, b in ones)
        gaps = [a.credit - b.credit for a, b in ones]
        mean = math.fsum(gaps) / len(gaps) if gaps else 0.0
        interval = t_interval(gaps) if gaps else (-math.inf, math.inf)
        evidence = sign_evidence(wins, losses)
        found.append(
            PairedPolicies(first, second, len(ones), wins, losses, (mean, interval), mcnemar(wins, losses), evidence)
        )
    return found


def threshold(policies: int) -> float:
    """Of the evidence at which a pair is decided: 1/alpha, times the number of pairs."""
    return math.comb(policies, 2) / ALPHA


def is_decided(results: Sequence[TrialResult], policies: Sequence[str]) -> bool:
    """Whether the stopping rule ends the series: every pair is decided."""
    pairs = pair_up(results, policies)
    return bool(pairs) and all(pair.evidence >= threshold(len(policies)) for pair in pairs)


def stopping_rule(policies: int, trials: int, *, early: bool) -> str:
    """The rule in words, for the plan and the report."""
    fixed = f"it ends after {trials} trials of each policy on each task"
    if not early or policies < 2:
        return f"{fixed}, whatever is seen on the way"
    pairs = math.comb(policies, 2)
    return (
        f"{fixed}, or after a scene when the evidence of every pair has reached {threshold(policies):g} (anytime-valid "
        f"sign test of the scenes on which one of two succeeded, all tasks together; {pairs} pairs, alpha = {ALPHA})"
    )


def table_lines(results: Sequence[TrialResult], policies: Sequence[str], tasks: Sequence[str]) -> list[str]:
    """The report's tables, in Markdown."""
    lines = ["| policy | task | trials | success | 95% (Wilson) | credit | stops | ended by hand |", "|" + "---|" * 8]
    for policy in policies:
        ours = [each for each in results if each.policy == policy]
        for task in (*tasks, *([TOGETHER] if len(tasks) > 1 else [])):
            rows = [each for each in ours if task in (each.task, TOGETHER)]
            lines.append(_row(policy, task, rows))
    pairs = pair_up(results, policies)
    if pairs:
        lines += ["", "| pair | scenes | only first | only second | credit, 95% | p (McNemar, Holm) | evidence |"]
        lines.append("|" + "---|" * 7)
        for pair, p in zip(pairs, holm([pair.p for pair in pairs]), strict=True):
            mean, (low, high) = pair.credit
            cells = (f"{pair.first} - {pair.second}", pair.scenes, pair.only_first, pair.only_second)
            figures = (f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]", f"{p:.3g}", f"{pair.evidence:.3g}")
            lines.append("| " + " | ".join(map(str, (*cells, *figures))) + " |")
    return lines


def _row(policy: str, task: str, rows: Sequence[TrialResult]) -> str:
    count, done = len(rows), sum(each.success for each in rows)
    low, high = wilson_interval(done, count)
    credit = math.fsum(each.credit for each in rows) / count if count else math.nan
    share = f"{done / count:.0%}" if count else "-"
    stops, ended = sum(each.stops for each in rows), sum(each.intervened for each in rows)
    cells = (policy, task, count, f"{done} ({share})", f"{low:.0%} to {high:.0%}", f"{credit:.2f}", stops, ended)
    return "| " + " | ".join(map(str, cells)) + " |"


def counted(lines: Sequence[Mapping[str, object]]) -> list[TrialResult]:
    """The trials of a log that count."""
    keys = TrialResult.__dataclass_fields__
    return [TrialResult(**{key: line[key] for key in keys}) for line in lines if line["credit"] is not None]  # type: ignore[arg-type]
