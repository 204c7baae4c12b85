"""Whole evaluations with worker processes in a simulator that costs nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from rlspec.config.vla_schema import Env, SimEvaluation
from rlspec.display import Display
from rlspec.errors import ConfigError, UserError
from rlspec.run_directory import RunDirectory
from rlspec.vla.evaluation import oracle
from rlspec.vla.evaluation.campaign import choose_filmed, repeated_states
from rlspec.vla.evaluation.episodes import EpisodePlan, EvaluatedEpisode, plan_episodes
from rlspec.vla.evaluation.evaluator import SimEvaluator
from rlspec.vla.evaluation.jobs import ActorSpec, Alive, Done, EvaluationJob, JobRefused, Raised, WorkerSettings
from rlspec.vla.evaluation.pool import WorkerPool, _Worker
from rlspec.vla.evaluation.results import rate_of, summarize
from rlspec.vla.evaluation.runner import Runner
from rlspec.vla.evaluation.simulator import Simulator


class Lines(Display):
    """Keeps what is shown."""

    def __init__(self) -> None:
        super().__init__("plain", quiet=True)
        self.shown: list[str] = []

    def line(self, text: str = "") -> None:
        self.shown.append(text)

    def warn(self, text: str) -> None:
        self.shown.append(f"WARNING: {text}")


def recipe(options: dict[str, Any] | None = None, **settings: Any) -> SimpleNamespace:
    env = Env(name="fake", suite="fake", tasks=[], options=options or {})
    evaluation = SimEvaluation(**{"episodes": 4, "workers": 2, "videos": 0, "seed": 50, **settings})
    return SimpleNamespace(env=env, evaluation=evaluation, device="cpu")


def evaluator(folder: Path, settings: Any, display: Display | None = None, **options: Any) -> SimEvaluator:
    return SimEvaluator(settings, RunDirectory(folder), display or Lines(), module="fake_sim", **options)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "episodes.jsonl").read_text().splitlines()]


def without_clock(episodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "wall_seconds"} for row in episodes]


def test_two_workers_reach_what_one_process_reaches_and_stay_for_the_next_evaluation(tmp_path: Path) -> None:
    log = tmp_path / "log"
    settings = recipe({"log": str(log)}, videos=1)
    with evaluator(tmp_path, settings) as simulator:
        result = simulator.measure("expert", "first", 3)
        simulator.start("expert", "second", 4, episodes=1)
        (second,) = simulator.wait()
        assert simulator.finished() == []
    here = Runner(WorkerSettings(Simulator("fake", {"log": ""}, "fake_sim")))
    plans = [EpisodePlan(task, index, 50 + index) for task in ("near", "far") for index in range(4)]
    alone = [here.run(EvaluationJob(ActorSpec("expert"), plan)).episode.to_json() for plan in plans]
    assert without_clock(rows(tmp_path / "evaluations/first")) == without_clock(alone)
    assert (result.label, result.step, result.success_rate) == ("first", 3, 1.0)
    assert (second.label, second.step, second.total.episodes) == ("second", 4, 2)
    processes = {line.split()[2] for line in log.read_text().splitlines()}
    assert len(processes) == 2
    # 8 episodes, one film per task, 2 episodes of the second evaluation.
    assert len(log.read_text().splitlines()) == 8 + 2 + 2
    films = sorted(path.name for path in (tmp_path / "evaluations/first/videos").iterdir())
    assert films == ["far-000-success.mp4", "near-000-success.mp4"]
    metrics = json.loads((tmp_path / "evaluations/first/metrics.json").read_text())
    assert metrics == json.loads(json.dumps(result.to_json()))
    assert metrics["tasks"]["near"]["successes"] == 4 and metrics["suites"]["fake"]["episodes"] == 8
    assert metrics["renderer"] == "none" and metrics["max_steps"] == 30 and metrics["checkpoint"] == "expert"
    assert {"rlspec", "torch", "mujoco"} <= metrics["versions"].keys()


def test_crashed_episodes_are_repeated_once_then_counted_and_said(tmp_path: Path) -> None:
    display = Lines()
    options = {"crash_once": 50, "crash": 51, "hang": 52, "marks": str(tmp_path)}
    settings = recipe(options, workers=1)
    settings.env.tasks = ["near"]
    with evaluator(tmp_path, settings, display=display, silence=2.0) as simulator:
        result = simulator.measure("expert", "hard", 0)
    found = {row["index"]: row["failure"] for row in rows(tmp_path / "evaluations/hard")}
    assert found == {0: "", 1: "crashed", 2: "crashed", 3: ""}
    assert (result.total.successes, result.total.episodes) == (2, 4)
    assert result.total.failures == {"crashed": 2}
    shown = "\n".join(display.shown)
    assert "near, episode 0: the worker died: exit code 7; it is run once more" in shown
    assert "near, episode 1: the worker died: exit code 7; counted as a failure (crashed)" in shown
    assert "near, episode 2: the worker gave no sign of life for 2 s; counted as a failure (crashed)" in shown
    assert "episode 0: the worker died: exit code 7; counted" not in shown
    assert any("2 episodes crashed and count as failures" in line for line in result.lines())


@pytest.mark.parametrize("episodes", [1, 2])
def test_where_every_episode_crashes_there_is_no_rate(episodes: int, tmp_path: Path) -> None:
    settings = recipe({"wrong": 50}, episodes=1, workers=1)
    settings.env.tasks = ["near", "far"][:episodes]
    with evaluator(tmp_path, settings) as simulator, pytest.raises(UserError) as caught:
        simulator.measure("expert", "hard", 0)
    how = "the only episode" if episodes == 1 else "all 2 episodes"
    assert str(caught.value) == f"{how} crashed, so there is no success rate: RuntimeError: a mistake in the program"
    assert not (tmp_path / "evaluations/hard/metrics.json").exists()


def test_perturbed_episodes_are_compared_with_the_same_ones_as_they_were(tmp_path: Path) -> None:
    settings = recipe(episodes=3, workers=1, videos=1, perturb=["camera"], strength=[1])
    with evaluator(tmp_path, settings) as simulator:
        first = simulator.measure("expert", "robust", 0)
    ((name, camera),) = first.perturbations.items()
    assert (name, camera.rate.successes, camera.lost) == ("camera:1", 6, 0)
    settings = recipe(episodes=3, workers=1, videos=1, perturb=["layout", "camera"], strength=[3, 1])
    with evaluator(tmp_path, settings) as simulator:
        result = simulator.measure("expert", "robust", 0)
        simulator.start("expert", "beside", 1, episodes=1)
        (beside,) = simulator.wait()
    assert beside.perturbations == {}  # training does not pay for them
    assert (result.success_rate, result.total.episodes, list(result.tasks)) == (1.0, 6, ["near", "far"])
    layout = result.perturbations["layout:3"]
    assert (layout.rate.successes, layout.rate.episodes, layout.lost, layout.gained) == (0, 6, 6, 0)
    assert list(result.perturbations) == ["layout:3", "layout:1", "camera:3", "camera:1"]
    seeds = [(row["task"], row["seed"]) for row in rows(tmp_path / "evaluations/robust")]
    assert len(seeds) == 5 * 6 and seeds[:6] == seeds[6:12]  # the same episodes, pair by pair
    metrics = json.loads((tmp_path / "evaluations/robust/metrics.json").read_text())
    assert metrics["perturbations"]["layout:3"]["ci95"] == [0.0, 0.3903]  # Wilson, 0 of 6
    assert metrics["total"]["episodes"] == 6 and metrics["success_rate"] == 1.0
    films = {path.name for path in (tmp_path / "evaluations/robust/videos").iterdir()}
    assert {"near-000-success.mp4", "near-layout-3-000-timeout.mp4", "far-camera-1-000-success.mp4"} <= films
    table = "\n".join(result.lines())
    assert "none" in table and "layout:3" in table and "0/6" in table and "words" not in table


def test_two_processes_do_not_measure_into_one_folder(tmp_path: Path) -> None:
    with evaluator(tmp_path, recipe(episodes=1, workers=1)) as simulator:
        (tmp_path / "evaluations/x").mkdir(parents=True)
        with (tmp_path / "evaluations/x/.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(ConfigError, match="another process is measuring into this folder"):
                simulator.measure("expert", "x", 0)


@pytest.mark.parametrize(("successes", "said"), [(0, "words are read"), (16, "whether words are read is not shown")])
def test_the_control_says_whether_words_are_read(successes: int, said: str) -> None:
    plain = [episode("a", index, "", 9) for index in range(20)]
    kinds = ["" if index < successes else "timeout" for index in range(20)]
    told = [replace(episode("a", i, kind, 9), perturbation="wrong_instruction") for i, kind in enumerate(kinds)]
    assert summarize("x", 0, "fake", [*plain, *told], {}, Path("x")).lines()[-1].startswith(said)


def test_a_replay_is_not_perturbed(tmp_path: Path) -> None:
    settings = recipe(perturb=["all"])
    simulator = evaluator(tmp_path, settings, dataset_root=tmp_path)
    with simulator, pytest.raises(ConfigError, match="a replay repeats the scenes that were recorded"):
        simulator.measure("replay", "x", 0)


class ThreadPool(WorkerPool):
    """A pool whose workers are threads that answer every job alike."""

    def __init__(self, answer: Callable[[EvaluationJob], Any]) -> None:
        self.warnings: list[str] = []
        super().__init__(Simulator("fake", {}, "fake_sim"), 2, self.warnings.append)
        self.answer, self.started = answer, 0

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        self.started += 1

        def serve() -> None:
            with contextlib.suppress(EOFError, OSError):
                while (job := theirs.recv()) is not None:
                    theirs.send(self.answer(job))

        threading.Thread(target=serve, daemon=True).start()
        process = SimpleNamespace(is_alive=lambda: False, join=lambda timeout=None: None, exitcode=0)
        return _Worker(process, ours)


def jobs_of(*names: str) -> list[EvaluationJob]:
    return [EvaluationJob(ActorSpec("expert"), EpisodePlan(name, 0, 0)) for name in names]


def test_an_evaluation_in_which_nothing_but_crashes_happens_is_given_up() -> None:
    pool = ThreadPool(lambda job: Raised("RuntimeError: a mistake", "Traceback ..."))
    finished: list[str] = []
    with pytest.raises(UserError, match="3 episodes crashed and none came to its end: RuntimeError: a mistake"):
        pool.run(jobs_of(*"abcdefgh"), lambda job, done: finished.append(job.plan.task))
    assert len(finished) == 2  # the third ended it
    assert sum("it is run once more" in line for line in pool.warnings) >= 3
    assert "Traceback ..." in pool.warnings
    # Every answer of an exception costs its worker.
    assert pool.started >= 6
    pool.close()


def test_one_refusal_ends_the_evaluation_at_once() -> None:
    pool = ThreadPool(lambda job: JobRefused("the policy needs the camera x") if job.plan.task == "b" else Alive())
    with pytest.raises(ConfigError, match="^the policy needs the camera x$"):
        pool.run(jobs_of("a", "b"), lambda job, done: None)
    assert not pool.warnings
    pool.close()


def test_a_worker_keeps_to_its_task_as_long_as_there_is_work_in_it() -> None:
    order: dict[int, list[str]] = {}

    def answer(job: EvaluationJob) -> Done:
        order.setdefault(threading.get_ident(), []).append(job.plan.task)
        time.sleep(0.01)
        return Done(episode(job.plan.task, 0), {})

    pool = ThreadPool(answer)
    pool.run(jobs_of(*"abcabcabcabc"), lambda job, done: None)
    pool.close()
    switches = sum(one != other for tasks in order.values() for one, other in pairwise(tasks))
    assert sum(map(len, order.values())) == 12
    assert switches <= 2  # the third task, for one worker or for both


def test_an_option_that_the_environment_refuses_is_one_line(tmp_path: Path) -> None:
    with evaluator(tmp_path, recipe({"control_hz": -1.0}, workers=1)) as simulator:
        with pytest.raises(ConfigError, match="control_hz=-1.0 must be positive") as caught:
            simulator.measure("expert", "x", 0)
        assert "\n" not in str(caught.value)
        simulator.start("expert", "y", 0)
        with pytest.raises(ConfigError, match="must be positive"):
            simulator.wait()


def test_an_interrupted_evaluation_runs_only_what_is_missing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    settings = recipe({"log": str(log)}, workers=1)
    with evaluator(tmp_path, settings) as simulator:
        whole = simulator.measure("expert", "x", 0)
        folder = tmp_path / "evaluations/x"
        full = (folder / "episodes.jsonl").read_text()
        lines = full.splitlines(keepends=True)
        # As a kill leaves it: some rows, the last one cut short, no metrics.
        (folder / "episodes.jsonl").write_text("".join([lines[2], lines[5], lines[7][:30]]))
        (folder / "metrics.json").unlink()
        log.unlink()
        again = simulator.measure("expert", "x", 0)
        ran = sorted(tuple(line.split()[:2]) for line in log.read_text().splitlines())
        assert ran == sorted(
            [("near", "50"), ("near", "51"), ("near", "53"), ("far", "50"), ("far", "52"), ("far", "53")]
        )
        assert without_clock(rows(folder)) == without_clock([json.loads(line) for line in lines])
        assert again.to_json()["tasks"] == whole.to_json()["tasks"]
        log.unlink()
        more = simulator.measure("expert", "x", 0, episodes=5)
        assert len(log.read_text().splitlines()) == 2 and more.total.episodes == 10
    with (
        evaluator(tmp_path, recipe({"log": str(log)}, seed=51), keep=True) as simulator,
        pytest.raises(ConfigError, match="seed was 50, is 51.*out="),
    ):
        simulator.measure("expert", "x", 0)


def test_training_sets_aside_what_was_measured_with_other_settings(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations/x"
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text(json.dumps({"settings": {"seed": 1}, "observed": {}}))
    (folder / "episodes.jsonl").write_text("")
    display = Lines()
    with evaluator(tmp_path, recipe(workers=1, episodes=1), display=display) as simulator:
        simulator.measure("expert", "x", 0)
    assert (tmp_path / "evaluations/abandoned-x/settings.json").is_file()
    assert len(rows(folder)) == 2
    assert any("set aside in abandoned-x (seed was 1, is 50" in line for line in display.shown)


@pytest.fixture
def demonstrations(tmp_path: Path) -> Iterator[Path]:
    """What `rlspec.vla.data.episodes` reads, as two demonstrations of the fake simulator."""
    import fake_sim
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[Any]] = {"episode_index": [], "action": [], "observation.state": []}
    starts = []
    for number, (task, seed) in enumerate((("near", 5), ("far", 6))):
        env = fake_sim.PointEnv(task)
        observation, done = env.reset(seed=seed)[0], False
        starts.append({"task": task, "seed": seed, "initial_state": None})
        while not done:
            action = fake_sim.PointExpert(env).act()
            columns["episode_index"].append(number)
            columns["observation.state"].append(observation["agent_pos"].tolist())
            columns["action"].append(action.tolist())
            observation, _, done, _, _ = env.step(action)
    root = tmp_path / "data"
    (root / "meta").mkdir(parents=True)
    (root / "data/chunk-000").mkdir(parents=True)
    pq.write_table(pa.table(columns), root / "data/chunk-000/file-000.parquet")
    features: dict[str, Any] = {name: {} for name in ("action", "observation.state")}
    (root / "meta/info.json").write_text(json.dumps({"fps": 10, "features": features}))
    env = fake_sim.PointEnv("near")
    record = {
        "suite": "fake",
        "control_hz": 10.0,
        "action_space": "delta_eef",
        "env": env.describe(),
        "episodes": starts,
    }
    (root / "meta/rlspec.json").write_text(json.dumps(record))
    yield root


class HerePool:
    """Runs jobs in this process, as the pool would."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.runner = Runner(WorkerSettings(Simulator("fake", options, "fake_sim")))

    def run(self, jobs: list[EvaluationJob], on_done: Any) -> None:
        for job in jobs:
            on_done(job, self.runner.run(job))


def replay(root: Path, options: dict[str, Any]) -> list[str]:
    simulator = Simulator("fake", options, "fake_sim")
    protocol: Any = SimpleNamespace(simulator=simulator, tasks=("near", "far"))
    lines: list[str] = []
    pool: Any = HerePool(options)
    oracle.replay_demonstrations(protocol, root, 1, pool, lines.append, lines.append)
    return lines


def test_recorded_demonstrations_succeed_again(demonstrations: Path) -> None:
    assert replay(demonstrations, {}) == ["replay: 2 of 2 demonstrations succeed again"]


def test_the_replay_oracle_is_red_where_the_environment_was_altered(demonstrations: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        replay(demonstrations, {"control_hz": 20.0})
    text = str(caught.value)
    assert "2 of 2 demonstrations" in text and "\n" not in text
    assert "near, seed 5: timeout; the state left the record at step 1" in text
    assert "control_hz was 10.0, is 20.0" in text and "evaluation.replay=0" in text


def test_replay_is_an_actor_like_any_other(demonstrations: Path, tmp_path: Path) -> None:
    settings = recipe(workers=1, replay=2, max_steps=2)  # a limit is the policy's; records are longer
    with evaluator(tmp_path, settings, dataset_root=demonstrations) as simulator:
        result = simulator.measure("replay", "replay", 0)
        limited = simulator.measure("expert", "limited", 0, episodes=1)
    assert limited.total.failures == {"timeout": 2} and limited.total.mean_steps == 2
    assert (result.total.successes, result.total.episodes) == (2, 2)
    assert [row["seed"] for row in rows(tmp_path / "evaluations/replay")] == [5, 6]


def episode(task: str, index: int, failure: str = "", steps: int = 10) -> EvaluatedEpisode:
    return EvaluatedEpisode(task, index, index, None, steps, not failure, failure, steps / 10, 0.0)


def test_rates_have_wilson_intervals_and_crashes_are_not_averaged() -> None:
    episodes = [episode("a", index, steps=10 + index) for index in range(7)]
    episodes += [episode("a", 7, "timeout", 30), episode("a", 8, "dropped", 20), episode("a", 9, "crashed", 0)]
    rate = rate_of(episodes)
    expected = binomtest(7, 10).proportion_ci(method="wilson")
    assert np.allclose(rate.interval, (expected.low, expected.high))
    assert rate.failures == {"crashed": 1, "dropped": 1, "timeout": 1}
    assert rate.mean_steps == pytest.approx((sum(range(10, 17)) + 50) / 9)
    assert rate.mean_success_steps == pytest.approx(13.0)
    assert rate_of([]).rate == 0.0


def test_the_table_has_a_line_per_task_and_a_total() -> None:
    episodes = [episode("a", index) for index in range(3)] + [episode("b", index, "timeout") for index in range(3)]
    result = summarize("x", 5, "fake", episodes, {}, Path("x"))
    head, first, second, total = result.lines()
    assert head.split()[:2] == ["task", "success"]
    assert first.split() == ["a", "3/3", "100.0%", "[43.9%,", "100.0%]", "10.0"]
    assert second.split() == ["b", "0/3", "0.0%", "[0.0%,", "56.1%]", "10.0", "timeout", "3"]
    assert total.split()[:3] == ["total", "3/6", "50.0%"]
    assert result.to_json()["total"]["ci95"] == pytest.approx([0.1876, 0.8124], abs=1e-4)


@pytest.mark.parametrize(
    ("kinds", "count", "chosen"),
    [("sfsf", 2, [0, 1]), ("ssss", 2, [0, 1]), ("ffsf", 2, [2, 0]), ("ffff", 3, [0, 1, 2]), ("cfsc", 4, [2, 1])],
)
def test_the_first_successes_and_failures_are_filmed(kinds: str, count: int, chosen: list[int]) -> None:
    failures = {"s": "", "f": "timeout", "c": "crashed"}
    episodes = [episode("a", index, failures[kind]) for index, kind in enumerate(kinds)]
    assert [each.index for each in choose_filmed(episodes, count)] == chosen


def test_no_environment_is_an_error(tmp_path: Path) -> None:
    settings = recipe()
    settings.env = None
    with pytest.raises(UserError, match="env: the recipe has none"):
        evaluator(tmp_path, settings)


@pytest.mark.parametrize(("states", "episodes", "lines"), [(50, 50, 0), (50, 51, 1), (None, 60, 0)])
def test_more_episodes_than_stored_initial_states_are_called_repetitions(
    states: int | None, episodes: int, lines: int
) -> None:
    plans = plan_episodes(["0", "1"], episodes, 7, stored_states=True)
    said = list(repeated_states(plans, {"initial_states": states}))
    assert len(said) == lines and all(
        "51 episodes of a task that has 50 stored initial states" in each for each in said
    )
