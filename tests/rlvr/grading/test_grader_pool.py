"""The pool of grading processes: nothing hangs it, nothing is lost, nothing is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from grader_hostile_inputs import HARD_PAIRS, hostile_pairs

from rlspec.errors import ConfigError
from rlspec.rlvr.grading import GraderPool, Verdict, process
from rlspec.rlvr.grading.gold_check import only_plain, preflight

HERE = Path(__file__).resolve().parent
GOOD = [(r"\sqrt{12}", r"2\sqrt{3}"), ("41", "42"), ("42.0", "42"), ("(2,1)", "(1,2)")]
GOOD_VERDICTS = [True, False, True, False]
FOR_EVER = 30.0  # seconds; the pool's timeout is a few, and another program may have the processor


@pytest.fixture(scope="module")
def pool() -> Iterator[GraderPool]:
    with GraderPool(workers=2) as pool:
        yield pool


@pytest.fixture
def misbehaving(monkeypatch: pytest.MonkeyPatch) -> Iterator[GraderPool]:
    """A pool whose graders hang, crash or fill the memory when the answer says so."""
    monkeypatch.setattr(process, "WORKER", "grader_misbehaving_worker")
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    with GraderPool(workers=2, timeout=1.0, warm=False) as pool:
        yield pool


def still_works(pool: GraderPool) -> bool:
    return [verdict.correct for verdict in pool.grade_answers(GOOD)] == GOOD_VERDICTS


def plain_verdicts(pool: GraderPool, count: int) -> list[bool | None]:
    return [verdict.correct for verdict in pool.grade_answers([(str(i), str(i - i % 2)) for i in range(count)])]


def children_of(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def gone(groups: list[int], within: float) -> bool:
    end = time.monotonic() + within
    while any(children_of(group) for group in groups):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_completions_and_bare_answers_get_the_same_verdicts(pool: GraderPool) -> None:
    bare = pool.grade_answers(GOOD)
    boxed = pool.grade_many([(f"so \\boxed{{{answer}}}", gold) for answer, gold in GOOD])
    assert [verdict.correct for verdict in bare] == GOOD_VERDICTS
    assert [(v.correct, v.reason, v.extracted) for v in boxed] == [(v.correct, v.reason, v.extracted) for v in bare]
    assert [v.boxes for v in boxed] == [1] * 4
    assert pool.grade_many([]) == []


def test_thinking_reaches_the_workers(pool: GraderPool) -> None:
    item = (r"\boxed{4}", "4")
    assert [pool.grade_many([item], thinking=t)[0].reason for t in (True, False)] == ["truncated_thinking", "exact"]


def test_order_is_kept_over_many_chunks(pool: GraderPool) -> None:
    assert plain_verdicts(pool, 1000) == [i % 2 == 0 for i in range(1000)]


@pytest.mark.slow
def test_at_least_a_thousand_verdicts_per_second_on_gsm8k(pool: GraderPool, shared: Path) -> None:
    lines = (shared / "data" / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").split("\n")
    golds = [json.loads(line)["answer"] for line in lines if line]
    items = [(re.sub(r"#### (.*)", r"So the answer is \\boxed{\\$\1.00}.", gold), gold) for gold in golds]
    start = time.perf_counter()
    verdicts = pool.grade_many(items)
    rate = len(items) / (time.perf_counter() - start)
    assert all(verdict.reason == "decimal" for verdict in verdicts)
    assert rate > 1000, f"{rate:.0f} verdicts per second"


def test_hostile_inputs_are_answered_in_time_and_leave_the_pool_alive(pool: GraderPool) -> None:
    pairs = hostile_pairs()
    assert len(pairs) >= 200
    slowest = 0.0
    for i, (answer, gold) in enumerate(pairs):
        start = time.perf_counter()
        if i % 2:
            (verdict,) = pool.grade_answers([(answer, gold)])
        else:
            (verdict,) = pool.grade_many([(f"\\boxed{{{answer}}}", gold)])
        slowest = max(slowest, time.perf_counter() - start)
        assert verdict.correct is not True, (answer[:80], gold[:80], verdict.reason)
        assert verdict.reason != "grader_error", (answer[:80], gold[:80])
    assert slowest < FOR_EVER
    assert still_works(pool)


@pytest.mark.parametrize(("answer", "gold"), HARD_PAIRS)
def test_equal_answers_that_are_hard_to_prove_are_answered_in_time(pool: GraderPool, answer: str, gold: str) -> None:
    start = time.perf_counter()
    (verdict,) = pool.grade_answers([(answer, gold)])
    assert time.perf_counter() - start < FOR_EVER
    assert verdict.reason in ("symbolic", "unproven", "budget", "timeout")


def test_hostile_inputs_in_one_batch_do_not_spoil_their_neighbours(pool: GraderPool) -> None:
    pairs = [pair for hostile in hostile_pairs() for pair in (hostile, ("7", "7"))]
    assert all(verdict.correct for verdict in pool.grade_answers(pairs)[1::2])


def test_a_hanging_grader_is_cut_off_and_the_rest_of_the_batch_graded(misbehaving: GraderPool) -> None:
    tries, fallen = 0, "grader_error"
    while fallen == "grader_error" and tries < 10:  # beside busy programs it may not have had its share when time is up
        start, tries = time.perf_counter(), tries + 1
        verdicts = misbehaving.grade_answers([("1", "1"), ("HANG", "1"), ("2", "2"), ("3", "4")])
        assert time.perf_counter() - start < FOR_EVER
        fallen = verdicts[1].reason
    assert [verdict.reason for verdict in verdicts] == ["exact", "timeout", "exact", "different"]
    assert verdicts[1] == Verdict(False, "timeout", "HANG", 0)
    assert misbehaving.restarts == tries
    assert misbehaving.timeout_share == 0.25
    assert misbehaving.tripped
    assert misbehaving.counts["timeout"] == 1
    assert plain_verdicts(misbehaving, 10) == [True, False] * 5
    assert not misbehaving.tripped


def test_an_answer_is_not_refused_for_a_grader_without_a_processor(misbehaving: GraderPool) -> None:
    verdicts = misbehaving.grade_answers([("1", "1"), ("SLEEP", "1"), ("2", "2")])
    assert verdicts == [Verdict(True, "exact", "1", 0), Verdict(None, "grader_error", "SLEEP", 0), verdicts[2]]
    assert verdicts[2].correct and misbehaving.restarts == 1


def test_a_stopped_process_is_killed_from_outside(misbehaving: GraderPool) -> None:
    for group in misbehaving.worker_pids:
        os.killpg(group, signal.SIGSTOP)
    start = time.perf_counter()
    verdicts = misbehaving.grade_answers([("1", "1")])
    assert time.perf_counter() - start < FOR_EVER
    assert verdicts[0] == Verdict(None, "grader_error", "1", 0)  # not the answer's fault
    for group in misbehaving.worker_pids:
        os.killpg(group, signal.SIGCONT)
    assert plain_verdicts(misbehaving, 4) == [True, False, True, False]


@pytest.mark.parametrize("answer", ["RAISE", "ABORT"])
def test_a_crash_of_the_grader_is_no_verdict(misbehaving: GraderPool, answer: str) -> None:
    verdicts = misbehaving.grade_answers([("1", "1"), (answer, "1"), ("2", "2")])
    assert [verdict.correct for verdict in verdicts] == [True, None, True]
    assert verdicts[1].reason == "grader_error"
    assert misbehaving.counts["grader_error"] == 1
    assert misbehaving.restarts == (0 if answer == "RAISE" else 2)


def test_memory_is_limited(misbehaving: GraderPool) -> None:
    assert misbehaving.grade_answers([("MEMORY", "1")])[0].reason == "budget"
    assert plain_verdicts(misbehaving, 2) == [True, False]


def test_workers_killed_in_the_middle_of_a_batch_are_replaced_and_nothing_is_lost() -> None:
    with GraderPool(workers=2, warm=False) as pool:
        groups = pool.worker_pids
        with ThreadPoolExecutor(1) as thread:
            future = thread.submit(plain_verdicts, pool, 40_000)
            time.sleep(0.2)
            for group in groups:
                os.killpg(group, signal.SIGKILL)
            assert not future.done()
            assert future.result(timeout=60) == [i % 2 == 0 for i in range(40_000)]
        assert pool.restarts == 2
        assert not set(pool.worker_pids) & set(groups)
        assert pool.counts["grader_error"] == 0


def test_many_threads_share_a_pool(pool: GraderPool) -> None:
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda n: plain_verdicts(pool, n), range(50, 90)))
    assert results == [[i % 2 == 0 for i in range(n)] for n in range(50, 90)]


def test_a_pool_works_when_made_outside_of_the_main_thread() -> None:
    results: list[bool] = []

    def run() -> None:
        with GraderPool(workers=1, warm=False) as own:
            results.append(plain_verdicts(own, 3) == [True, False, True])

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert results == [True]


def test_asyncio_is_not_blocked(pool: GraderPool) -> None:
    async def run() -> tuple[list[list[Verdict]], int]:
        ticks = 0
        items = [(f"\\boxed{{{i}}}", str(i)) for i in range(3000)]
        work = asyncio.gather(pool.agrade_many(items), pool.agrade_answers(GOOD))
        while not work.done():
            await asyncio.sleep(0.001)
            ticks += 1
        return list(await work), ticks

    (boxed, bare), ticks = asyncio.run(run())
    assert all(verdict.correct for verdict in boxed)
    assert [verdict.correct for verdict in bare] == GOOD_VERDICTS
    assert ticks > 3


def test_closing_ends_every_process_and_refuses_further_work() -> None:
    pool = GraderPool(workers=2, warm=False)
    pool.wait_ready()
    groups = pool.worker_pids
    assert all(len(children_of(group)) == 2 for group in groups)
    pool.close()
    pool.close()
    assert gone(groups, within=20)
    with pytest.raises(RuntimeError, match="closed"):
        pool.grade_many([("", "")])


@pytest.mark.timeout(60)
def test_closing_during_work_neither_hangs_nor_leaves_a_process() -> None:
    pool = GraderPool(workers=1, warm=False)
    with ThreadPoolExecutor(1) as thread:
        future = thread.submit(plain_verdicts, pool, 200_000)
        time.sleep(0.3)
        pool.close()
        assert future.exception(timeout=20) is not None
    assert gone(pool.worker_pids, within=20)


_PARENT = """
import sys, time
from rlspec.rlvr.grading import GraderPool
pool = GraderPool(workers=2, warm=False)
pool.wait_ready()
print(*pool.worker_pids, flush=True)
{then}
"""


@pytest.mark.parametrize(
    "then", ["time.sleep(60)", "pool.grade_answers([('1','1')] * 10_000_000)", "sys.exit(0)", "1 / 0"]
)
def test_no_process_survives_its_parent(then: str) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT.format(then=then)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert parent.stdout is not None
    groups = [int(word) for word in parent.stdout.readline().split()]
    assert len(groups) == 2
    if "sleep" in then or "grade" in then:
        time.sleep(0.1)
        parent.send_signal(signal.SIGKILL)
    parent.wait(30)
    parent.stdout.close()
    assert gone(groups, within=20)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_cannot_use_or_close_the_pool_of_its_parent(pool: GraderPool) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            pool.grade_answers([("1", "1")])
        except RuntimeError:
            pool.close()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert still_works(pool)


def test_a_process_that_does_not_start_is_reported_and_not_graded_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WORKER", "no_such_worker_module")
    with (
        GraderPool(workers=1) as pool,
        pytest.raises(process.GraderUnavailable, match="No module named no_such_worker"),
    ):
        pool.grade_answers([("1", "1")])


@pytest.mark.parametrize("options", [{"workers": 0}, {"timeout": 0.0}, {"timeout": 3.5}])
def test_impossible_pools_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        GraderPool(**options)  # type: ignore[arg-type]


def test_a_worker_imports_no_torch_and_a_cold_one_no_sympy() -> None:
    heavy = "[m for m in ('torch', 'sympy', 'transformers') if m in sys.modules]"
    code = f"import sys, rlspec.rlvr.grading.worker; print({heavy})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
    code = "import sys, rlspec.rlvr.grading.symbolic; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"


def test_preflight_keeps_good_rows_and_lists_the_others(pool: GraderPool) -> None:
    assert only_plain(["42", "so\n#### 1,080", r"\frac{1}{2}"])
    golds = ["42", "", r"2\sqrt{3}", r"\frac{1}{", "so 1+1=2\n#### 2", "9" * 400]
    report = preflight(golds, pool=pool)
    assert not only_plain(golds)
    assert report.accepted == [0, 2, 4]
    assert [(f.index, f.check, f.reason) for f in report.failures] == [
        (1, "identity", "empty_box"),
        (3, "identity", "empty_box"),
        (5, "readable", "gold_unreadable"),
    ]
    assert report.mutated == 6
    assert report.unmutated == 2
    assert sum(report.reasons.values()) == 11


def test_preflight_reports_a_grader_that_accepts_anything(pool: GraderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "grade_many", lambda items: [Verdict.of("exact") for _ in items])
    report = preflight(["42"], pool=pool)
    assert report.accepted == []
    assert [failure.check for failure in report.failures] == ["mutation: last digit", "mutation: first digit"]
