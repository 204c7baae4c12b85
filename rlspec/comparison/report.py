"""The report of a comparison: report.json for programs, report.md for people."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rlspec.comparison.estimates import Estimate, estimate, paired_differences
from rlspec.comparison.history import deviations
from rlspec.comparison.measures import SCORES
from rlspec.comparison.plan import Plan
from rlspec.comparison.running import TO_COME, unfinished_status
from rlspec.comparison.sweep import ArmResults, Result
from rlspec.versions import library_versions


def build_report(plan: Plan, results: Sequence[ArmResults], out: Path, command: str) -> dict[str, Any]:
    """Everything that was found, as JSON."""
    estimates = _estimates(plan, results)
    folders = [out / run.job.folder for arm in results for run in (*arm.tuning, *arm.runs)]
    departed = deviations(out, folders) + _without_result(results, out, {"failed"}, "no result of")
    departed += [
        f"{arm.name}: no tuning run has a score, so that no rate is chosen" for arm in results if _unscored(arm)
    ]
    departed += [f"{run.job.folder}: {run.error}" for arm in results for run in (*arm.tuning, *arm.runs) if run.error]
    departed += _untimed(plan, results, out, waiting=False)
    return {
        "plan": plan.model_dump(mode="json", exclude_defaults=True),
        "plan_sha256": plan.sha256,
        "followed": not departed,
        "deviations": departed,
        "unfinished": _without_result(results, out, TO_COME, "still to come:")
        + _untimed(plan, results, out, waiting=True),
        "command": command,
        "machine": machine(),
        "versions": library_versions(),
        "date": datetime.now(UTC).date().isoformat(),
        "score": _score_name(plan, results),
        "baseline": plan.baseline,
        "target": plan.target,
        "arms": [_arm(plan, arm, estimates[arm.name], out) for arm in results],
    }


def machine() -> dict[str, Any]:
    """Where this runs, as far as it bears on times."""
    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return {"processor": name, "cores": os.cpu_count(), "system": platform.system()}


def _estimates(plan: Plan, results: Sequence[ArmResults]) -> dict[str, Estimate | None]:
    scores = {arm.name: _scores(arm) for arm in results}
    with_any = {name: values for name, values in scores.items() if values}
    paired = (
        paired_differences(with_any, plan.baseline, planned=len(plan.arms) - 1) if plan.baseline in with_any else {}
    )
    return {
        arm.name: estimate(list(scores[arm.name].values()), _collapsed(arm), paired.get(arm.name)) for arm in results
    }


def _scores(arm: ArmResults) -> dict[int, float]:
    """Seed -> score, of the claim."""
    return {run.job.seed: run.measured.score for run in arm.runs if run.measured and run.measured.score is not None}


def _collapsed(arm: ArmResults) -> float:
    ended = [run.summary["status"] for run in arm.runs if run.summary]
    return ended.count("collapsed") / len(ended) if ended else 0.0


def _without_result(results: Sequence[ArmResults], out: Path, states: set[str], words: str) -> list[str]:
    """A line for each arm of which runs are in one of these states."""
    lines = []
    for arm in results:
        tuning = [run for run in arm.tuning if _status(run, out) in states] if arm.lr is None else []
        rates = ", ".join(f"{rate:g}" for rate in sorted({run.job.lr for run in tuning if run.job.lr is not None}))
        seeds = ", ".join(str(run.job.seed) for run in arm.runs if _status(run, out) in states)
        if tuning:
            lines.append(f"{arm.name}: {words} tuning at {rates}, so that no rate is chosen")
        elif seeds:
            lines.append(f"{arm.name}: {words} seed {seeds}")
    return lines


def _untimed(plan: Plan, results: Sequence[ArmResults], out: Path, *, waiting: bool) -> list[str]:
    """Arms that shall train as long as the baseline, and cannot, or cannot yet."""
    timing = [run for arm in results if arm.name == plan.baseline for run in arm.tuning]
    if any(_status(run, out) in TO_COME for run in timing) != waiting:
        return []
    arms = [arm.name for arm in results if arm.no_pace and arm.lr is not None]
    return [f"{name}: not trained, as no step of it or of the baseline has a measured time" for name in arms]


def _unscored(arm: ArmResults) -> bool:
    return arm.tuned is not None and arm.lr is None and all(run.summary is not None for run in arm.tuning)


def _status(result: Result, out: Path) -> str:
    """Finished or collapsed; failed, interrupted, running (in another process) or missing, where there is no result."""
    if result.summary is not None:
        return str(result.summary["status"])
    return unfinished_status(out / result.job.folder)


def _score_name(plan: Plan, results: Sequence[ArmResults]) -> str | None:
    after = (run.summary.get("after") or {} for arm in results for run in (*arm.runs, *arm.tuning) if run.summary)
    return plan.score or next((name for scores in after for name in SCORES if name in scores), None)


def _arm(plan: Plan, arm: ArmResults, found: Estimate | None, out: Path) -> dict[str, Any]:
    return {
        "name": arm.name,
        "overrides": plan.arms[arm.name],
        "lr": arm.lr,
        "at_edge": bool(arm.tuned and arm.tuned.edge),
        "flat": bool(arm.tuned and arm.tuned.flat),
        "tuning": [_run(run, out) for run in arm.tuning],
        "runs": [_run(run, out) for run in arm.runs],
        "statistics": found.as_json() if found else None,
    }


def _run(result: Result, out: Path) -> dict[str, Any]:
    found = result.measured
    return {
        "seed": result.job.seed,
        "lr": result.job.lr,
        "status": _status(result, out),
        "run": str(result.job.folder),
        **(
            {
                "steps": result.summary.get("steps") if result.summary else None,
                "score": found.score,
                "before": found.before,
                "peak": found.peak,
                "area": found.area,
                "mean_reward": found.mean_reward,
                "to_target": found.to_target,
                "seconds": found.seconds,
                "metrics": found.metrics,
            }
            if found
            else {"score": None}
        ),
    }


def render_markdown(report: Mapping[str, Any]) -> str:
    """The claim's table, the rates, and whether the plan was followed."""
    arms = report["arms"]
    words = SCORES.get(report["score"] or "", report["score"] or "score")
    lines = [f"Command: `{report['command']}`", ""]
    lines += _plan_lines(report)
    begun = [arm for arm in arms if any(run["status"] != "missing" for run in arm["runs"])]
    lines += _claim_table(report, begun, words) if begun else ["No run of the claim is done yet."]
    if tuned := [arm for arm in arms if any(run.get("score") is not None for run in arm["tuning"])]:
        lines += ["", *_tuning_table(tuned, words)]
    return "\n".join(lines) + "\n"


def _plan_lines(report: Mapping[str, Any]) -> list[str]:
    lines = [f"{index}. {text}" for index, text in enumerate(report["plan"].get("hypotheses", []), 1)]
    lines = ["Stated before the runs:", "", *lines, ""] if lines else []
    name, unfinished = f"The plan ({report['plan_sha256'][:12]})", report["unfinished"]
    if not report["followed"]:
        lines += [f"Departures from the plan ({report['plan_sha256'][:12]}):", "", *_listed(report["deviations"])]
    elif unfinished:
        lines += [f"{name} stood before the runs, and the runs so far followed it.", ""]
    else:
        lines += [f"{name} stood before the runs, and they followed it.", ""]
    if unfinished:
        lines += ["Not finished (the same command goes on):", "", *_listed(unfinished)]
    return lines


def _listed(lines: Sequence[str]) -> list[str]:
    return [*(f"- {line}" for line in lines), ""]


def _claim_table(report: Mapping[str, Any], arms: Sequence[Mapping[str, Any]], words: str) -> list[str]:
    baseline = report["baseline"]
    extra = sorted({name for arm in arms for run in arm["runs"] for name in run.get("metrics", {})} - {"pass@1"})
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "arm": lambda arm: str(arm["name"]),
        "rate": _rate,
        "before": lambda arm: _average(arm, "before", 100),
        f"{words}, by seed": lambda arm: ", ".join(_percent(run.get("score")) for run in arm["runs"]) or "none",
        "mean [bootstrap 95%]": _mean_cell,
        "Student's 95%": lambda arm: _ends((arm["statistics"] or {}).get("student")),
        f"less {baseline} [95%]": _paired_cell,
        "p (Holm)": _p_cell,
        "peak": lambda arm: _average(arm, "peak", 100),
        "area": lambda arm: _average(arm, "area", 100),
        "mean reward": lambda arm: _average(arm, "mean_reward", 1, 3),
        f"steps to {100 * (report['target'] or 0):g}%": _reached,
        **{name: partial(_metric, name=name) for name in extra},
        "collapsed": _collapsed_cell,
        "seconds": lambda arm: _average(arm, "seconds", 1, 0),
        "status": lambda arm: ", ".join(sorted({run["status"] for run in arm["runs"]})) or "failed",
    }
    table = {head: [cell(arm) for arm in arms] for head, cell in columns.items()}
    if baseline is None:
        table = {head: cells for head, cells in table.items() if head not in (f"less {baseline} [95%]", "p (Holm)")}
    if report["target"] is None:
        table = {head: cells for head, cells in table.items() if not head.startswith("steps to")}
    return _markdown({head: cells for head, cells in table.items() if any(cells)})


def _markdown(table: Mapping[str, Sequence[str]]) -> list[str]:
    """Numbers to the right; columns without a cell are left out by the caller."""
    words = {"arm", "status"}
    rows = zip(*table.values(), strict=True)
    return [
        f"| {' | '.join(table)} |",
        f"|{'|'.join('---' if head in words else '---:' for head in table)}|",
        *(f"| {' | '.join(cell.replace('|', '\\|') for cell in row)} |" for row in rows),
    ]


def _tuning_table(arms: Sequence[Mapping[str, Any]], words: str) -> list[str]:
    lines = [f"Tuning, {words} at each rate (the best in bold):", "", "| arm | rate: score | |", "|---|---|---|"]
    for arm in arms:
        cells = [_tuned_cell(rate, arm) for rate in sorted({run["lr"] for run in arm["tuning"]})]
        waiting = sum(run["status"] in TO_COME for run in arm["tuning"])
        note = "the best rate is at the end of what was tried" if arm["at_edge"] else ""
        note = "all rates score alike: a better one may lie outside of what was tried" if arm["flat"] else note
        note = f"{waiting} runs to come" if waiting else note
        lines.append(f"| {arm['name'].replace('|', '\\|')} | {', '.join(filter(None, cells))} | {note} |")
    return lines


def _tuned_cell(rate: float, arm: Mapping[str, Any]) -> str:
    runs = [run for run in arm["tuning"] if run["lr"] == rate]
    present = [run["score"] for run in runs if run["score"] is not None]
    without = [run["status"] for run in runs if run["score"] is None]
    if "missing" in without:
        return ""
    text = f"{rate:g}: {without[0] if without else _percent(sum(present) / len(present))}"
    return f"**{text}**" if rate == arm["lr"] else text


def _collapsed_cell(arm: Mapping[str, Any]) -> str:
    return f"{100 * arm['statistics']['collapsed']:.0f}%" if arm["statistics"] else ""


def _rate(arm: Mapping[str, Any]) -> str:
    return f"{arm['lr']:g}" if arm["lr"] is not None else ""


def _mean_cell(arm: Mapping[str, Any]) -> str:
    found = arm["statistics"]
    if not found:
        return ""
    text = _percent(found["mean"])
    return text if found["low"] is None else f"{text} {_ends((found['low'], found['high']))}"  # one seed: no interval


def _paired_cell(arm: Mapping[str, Any]) -> str:
    """With the number of pairs, where some seeds have none."""
    found = (arm["statistics"] or {}).get("paired")
    if not found:
        return ""
    ends = "" if found["low"] is None else f" [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
    pairs = f" ({found['n']} of {len(arm['runs'])} seeds)" if found["n"] < len(arm["runs"]) else ""
    return f"{100 * found['mean']:+.1f}{ends}{pairs}"


def _p_cell(arm: Mapping[str, Any]) -> str:
    found = (arm["statistics"] or {}).get("paired")
    return f"{found['p']:.3f} ({found['p_holm']:.3f})" if found and found["p"] is not None else ""


def _ends(ends: Sequence[float] | None) -> str:
    """An interval of a share, which lies in 0 to 100%."""
    return "" if ends is None else f"[{', '.join(f'{100 * min(max(end, 0.0), 1.0):.1f}' for end in ends)}]"


def _values(arm: Mapping[str, Any], key: str) -> list[float]:
    return [run[key] for run in arm["runs"] if run.get(key) is not None]


def _average(arm: Mapping[str, Any], key: str, factor: float, digits: int = 1) -> str:
    """With the number of runs that have it, where that is not all that have a score."""
    values = _values(arm, key)
    return f"{factor * sum(values) / len(values):.{digits}f}{_share(arm, values)}" if values else ""


def _share(arm: Mapping[str, Any], values: Sequence[float]) -> str:
    scored = len(_values(arm, "score"))
    return f" ({len(values)} of {scored})" if len(values) < scored else ""


def _reached(arm: Mapping[str, Any]) -> str:
    """The mean over the runs that reached it, and how many did where not all; nothing of runs without a curve."""
    if not _values(arm, "peak"):
        return ""
    return _average(arm, "to_target", 1, 0) or "never"


def _metric(arm: Mapping[str, Any], name: str) -> str:
    values = [run["metrics"][name] for run in arm["runs"] if name in run.get("metrics", {})]
    if not values:
        return ""
    mean = sum(values) / len(values)
    return f"{100 * mean:.1f}" if name.startswith(("pass@", "forgotten")) else f"{mean:.3g}"


def _percent(share: float | None) -> str:
    return "?" if share is None else f"{100 * share:.1f}"
