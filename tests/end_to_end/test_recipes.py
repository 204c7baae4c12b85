"""Every kind of run from its command line's arguments to its summary: as a user starts it, in a small size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from rlspec import evaluate, train
from rlspec.config.load import load_recipe
from rlspec.config.paths import list_recipes, resolve_path
from rlspec.rlvr.data.problems import _read_once
from rlspec.rlvr.models.tokenizer import build_byte_tokenizer

DEBUG = [name for name in list_recipes() if name.startswith("debug_")]


def run(*arguments: str, folder: Path) -> Path:
    assert train.main([*arguments, f"output_dir={folder}", "run=run"]) == 0
    return folder / "run"


def summary(path: Path) -> dict:
    return json.loads((path / "summary.json").read_text())


@pytest.mark.parametrize("recipe", DEBUG)
def test_a_debug_recipe_trains_two_steps_resumes_and_trains_two_more(recipe: str, tmp_path: Path) -> None:
    path = run(f"recipe={recipe}", "trainer.max_steps=2", folder=tmp_path)
    assert summary(path)["steps"] == 2
    assert train.main([f"resume={path}", "trainer.max_steps=4"]) == 0
    result = summary(path)
    assert (result["status"], result["steps"], result["recipe"]) == ("finished", 4, recipe)
    assert result["evaluations"]["after"] == {"arithmetic": result["after"]}  # by set of problems
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    # Everything that README promises of a run directory.
    for name in ("recipe.yaml", "symmetry.md", "symmetry.json", "preflight.jsonl", "curves.png", "tensorboard"):
        assert (path / name).exists(), name
    assert list((path / "tensorboard").rglob("events.out.tfevents*"))
    last = path / "checkpoints" / "checkpoint-4"
    assert (last / "symmetry.json").read_text() == (path / "symmetry.json").read_text()
    card = (last / "README.md").read_text()
    assert f"recipe `{recipe}`" in card and "| arithmetic | sampled pass@1 |" in card
    assert {"checkpoint-2", "checkpoint-4"} <= {folder.name for folder in (path / "checkpoints").iterdir()}
    assert load_recipe([f"recipe={path / 'recipe.yaml'}"]).recipe == recipe


def test_the_resolved_recipe_gives_the_same_run_again(tmp_path: Path) -> None:
    quick = ["trainer.max_steps=2", "evaluation.before=false", "evaluation.after=false"]
    first = run("recipe=debug_sft", "seed=5", *quick, folder=tmp_path / "a")
    again = run(f"recipe={first / 'recipe.yaml'}", folder=tmp_path / "b")
    weights = [load_file(path / "checkpoints" / "checkpoint-2" / "model.safetensors") for path in (first, again)]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_real_gsm8k_goes_through_the_same_path(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "gsm8k"
    path = run(
        "recipe=grpo_math",
        "data=gsm8k",
        f"data.path={data / 'train.jsonl'}",
        f"data.test_path={data / 'test.jsonl'}",
        "data.limit=200",
        "batch.prompts_per_step=2",
        "batch.samples_per_prompt=4",
        "trainer.max_steps=2",
        "evaluation.problems=4",
        "evaluation.samples=2",
        "evaluation.k=[1,2]",
        folder=tmp_path,
    )
    result = summary(path)
    assert result["after"]["n"] == 4
    assert result["after"]["truncation_rate"] > 0.5  # a policy that only knows sums babbles on
    answers = (path / "evaluations" / "after-gsm8k.jsonl").read_text().splitlines()
    assert len(answers) == 4 * 3
    assert all(json.loads(line)["reason"] for line in answers)


SOURCE = """
def short(completions, word, **kwargs):
    return [-len(c[0]["content"]) / 100 + (w == "a") for c, w in zip(completions, word)]
"""


def test_a_users_own_reward_file_trains_in_one_command_beside_another_reward(tmp_path: Path) -> None:
    (tmp_path / "my_reward.py").write_text(SOURCE)
    rows = [{"problem": f"{n} + {n} = ?", "answer": str(2 * n), "word": "ab"[n % 2]} for n in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine, small = f"{tmp_path / 'my_reward.py'}:short", ["trainer.max_steps=2", f"data={tmp_path / 'rows.jsonl'}"]
    path = run("recipe=debug_grpo", f"reward={mine}", *small, folder=tmp_path)
    assert summary(path)["status"] == "finished"
    both = f"reward=[{{name: '{mine}', weight: 2}}, {{name: format, weight: 0.1, options: {{style: boxed}}}}]"
    aggregation = "trainer.multi_objective_aggregation=normalize_then_sum"
    path = run("recipe=debug_grpo", both, aggregation, *small, folder=tmp_path / "both")
    (row, *_) = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    assert row["rewards/short/std"] > 0 and row["rewards/format/mean"] == 0.0
    answers = (path / "evaluations" / "after-rows.jsonl").read_text().splitlines()
    assert {json.loads(line)["reason"] for line in answers} == {"scored"}


QUIET = [
    "evaluation.before=false",
    "evaluation.after=false",
    "evaluation.every=0",
    "report.tensorboard=false",
    "reward=child_run:digits",
    "optim.lr=0.01",
]
TINY = [
    "batch.prompts_per_step=2",
    "batch.samples_per_prompt=4",
    "batch.micro_batch=8",
    "trainer.max_completion_length=8",
    "trainer.bf16=false",
]


@pytest.mark.parametrize("kind", ["built here", "a local folder", "LoRA"])
def test_the_penalty_is_on_the_distance_from_the_start_whatever_the_model_is(kind: str, tmp_path: Path) -> None:
    changes = ["model.lora.r=4", "optim=adamw"] if kind == "LoRA" else []
    if kind == "a local folder":
        changes = [
            f"model={resolve_path('checkpoints/tiny-arithmetic')}",
            "model.enable_thinking=null",
            "data=arithmetic",
            "data.limit=8",
            *TINY,
        ]
    path = run("recipe=debug_grpo", "trainer.beta=0.04", "trainer.max_steps=3", *QUIET, *changes, folder=tmp_path)
    kls = [json.loads(line)["kl"] for line in (path / "metrics.jsonl").read_text().splitlines() if '"kl"' in line]
    assert kls[0] == pytest.approx(0.0, abs=1e-6) and kls[-1] > 0


def test_a_job_that_was_killed_before_its_first_checkpoint_goes_on_from_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its command line stays the same for as often as it is killed."""
    always = ["recipe=debug_grpo", "resume=auto", f"output_dir={tmp_path}", "run=job", *QUIET]
    (tmp_path / "job").mkdir()  # what the kill has left
    (tmp_path / "job" / "recipe.yaml").write_text("recipe: debug_grpo\n")
    (tmp_path / "job" / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n')
    assert train.main([*always, "trainer.max_steps=2"]) == 0
    assert "ended before its first checkpoint; it starts over" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2] and [path.name for path in tmp_path.iterdir()] == ["job"]
    assert train.main([*always, "trainer.max_steps=3"]) == 0
    assert "resumed after step 2" in capsys.readouterr().out


def test_a_resumed_run_has_the_problems_that_it_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.dumps({"problem": f"{n} + 1 = ?", "answer": str(n + 1)}) for n in range(20)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(rows))
    path = run("recipe=debug_grpo", f"data={file}", "trainer.max_steps=1", *QUIET, folder=tmp_path)
    for changed in (
        [*rows, *(json.dumps({"problem": f"{n}?", "answer": "1"}) for n in range(9))],
        rows[::-1],
        rows[:14],
    ):
        file.write_text("\n".join(changed))
        _read_once.cache_clear()
        assert train.main([f"resume={path}", "trainer.max_steps=2"]) == 2
        assert "is another one; restore the data set" in capsys.readouterr().err
    file.write_text("\n".join(rows).replace('"answer": "3"', '"answer": "4"'))
    _read_once.cache_clear()
    assert train.main([f"resume={path}", "trainer.max_steps=2"]) == 2
    said = capsys.readouterr().err
    assert "another answer, or other columns, for problem" in said and "('2 + 1 = ?'); restore the data set" in said


def test_a_reward_that_stands_alone_is_weighted_too(tmp_path: Path) -> None:
    path = run("recipe=debug_grpo", "reward.weight=-2", "trainer.max_steps=1", *QUIET, folder=tmp_path)
    row = json.loads((path / "metrics.jsonl").read_text().splitlines()[0])
    assert row["reward"] == pytest.approx(-2 * row["rewards/digits/mean"]) and row["reward"] < 0


@pytest.mark.parametrize("content", ["", "{broken", '{"question": "x"}', "[1]"])
def test_a_bad_file_is_refused_before_libraries_are_loaded(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text(content)
    assert train.main(["recipe=grpo_math", f"data={tmp_path / 'bad.jsonl'}"]) == 2
    shown = capsys.readouterr()
    assert "bad.jsonl" in shown.err and "loading torch" not in shown.out


def test_a_lora_run_is_trained_resumed_and_evaluated_from_its_adapters(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["evaluation.problems=8", "evaluation.samples=2", "evaluation.k=[1]"]
    path = run(
        "recipe=grpo_math",
        "model.lora.r=4",
        "optim=adamw",
        "optim.lr=3e-3",
        "batch.prompts_per_step=4",
        "trainer.max_steps=2",
        *small,
        folder=tmp_path,
    )
    checkpoint = path / "checkpoints" / "checkpoint-2"
    assert {"adapter_model.safetensors", "adapter_config.json"} <= {file.name for file in checkpoint.iterdir()}
    assert not (checkpoint / "model.safetensors").exists()
    capsys.readouterr()
    assert evaluate.main([f"checkpoint={path}", *small]) == 0
    stored = json.loads((path / "evaluations" / "checkpoint-2" / "evaluate-arithmetic.json").read_text())
    # The same code inside and outside: the same answers, so the same metrics to the last digit.
    after = summary(path)["after"]
    assert {key: stored[key] for key in after} == after
    assert "an earlier measurement" not in capsys.readouterr().out
    assert evaluate.main([f"checkpoint={path}", *small, "evaluation.seed=7"]) == 0
    assert "evaluate-arithmetic.json: an earlier measurement, which this one replaces" in capsys.readouterr().out
    again = json.loads((path / "evaluations" / "checkpoint-2" / "evaluate-arithmetic.json").read_text())
    assert (stored["protocol"]["seed"], again["protocol"]["seed"]) == (1234, 7)


def test_the_shipped_warm_start_is_measured_alike_inside_a_run_and_outside(tmp_path: Path) -> None:
    small = ["evaluation.problems=40", "evaluation.samples=4", "evaluation.k=[1,4]"]
    path = run("recipe=grpo_math", "batch.prompts_per_step=2", "trainer.max_steps=1", *small, folder=tmp_path)
    assert evaluate.main(["checkpoint=checkpoints/tiny-arithmetic", *small, f"out={tmp_path / 'out'}"]) == 0
    outside = json.loads((tmp_path / "out" / "evaluate-arithmetic.json").read_text())
    before = summary(path)["before"]
    assert 0.2 < before["sampled_pass_at_1"] < 0.7
    assert {key: outside[key] for key in before} == before


LOSSES = {
    "GRPO": ["loss_type=grpo"],
    "Dr. GRPO": ["loss_type=dr_grpo", "scale_rewards=none"],
    "BNPO": ["loss_type=bnpo"],
    "LUSPO": ["loss_type=luspo", "importance_sampling_level=sequence"],
    "VESPO": ["loss_type=vespo", "vespo_k_pos=2.0"],
    "GSPO": ["loss_type=grpo", "importance_sampling_level=sequence"],
    "SAPO": ["loss_type=sapo", "sapo_temperature_neg=1.05"],
    "CISPO": ["loss_type=cispo", "epsilon_high=5.0"],
    "two-sided clip": ["delta=4.0"],
    "rewards scaled over the batch": ["scale_rewards=batch"],
    "off-policy mask": ["off_policy_mask_threshold=0.5"],
    "entropy mask": ["top_entropy_quantile=0.5"],
    "entropy bonus": ["entropy_coef=0.01"],
    "adaptive entropy": ["entropy_coef=0.01", "use_adaptive_entropy=true", "entropy_target=0.2"],
    "overlong filtering": ["mask_truncated_completions=true"],
    "KL with bias correction": ["beta=0.01", "use_bias_correction_kl=true"],
    "KL to a moving reference": ["beta=0.01", "sync_ref_model=true", "ref_model_sync_steps=1"],
    "rollouts used twice": ["num_iterations=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("what", LOSSES)
def test_every_loss_and_correction_of_trl_is_reached_by_its_key_and_trains(what: str, tmp_path: Path) -> None:
    knobs = [f"trainer.{knob}" for knob in LOSSES[what]]
    path = run(
        "recipe=debug_grpo", "trainer.max_steps=2", "batch.updates_per_generation=2", *QUIET, *knobs, folder=tmp_path
    )
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    assert len(losses) == 2 and all(row["loss"] is not None and row["grad_norm"] is not None for row in losses)
    # Random answers always end at the limit: all are overlong, and what is left out teaches nothing.
    assert (losses[0]["grad_norm"] > 0) == (what != "overlong filtering")
    assert yaml.safe_load((path / "recipe.yaml").read_text())["trainer"].keys() >= {
        knob.partition("=")[0] for knob in LOSSES[what]
    }


@pytest.mark.slow
def test_a_hub_snapshot_with_qwen3_0_6bs_architecture_trains_under_its_profile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The published sizes but for depth; the profile of real models but for sizes that a CPU cannot hold."""
    folder = tmp_path / "Qwen3-shrunk"
    config = Qwen3Config(
        hidden_size=1024,
        num_hidden_layers=1,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size=3072,
        vocab_size=151936,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    build_byte_tokenizer().save_pretrained(folder)
    path = run(
        "recipe=grpo_math",
        f"model={folder}",
        "data=arithmetic",
        "data.limit=8",
        "model.enable_thinking=null",
        "batch.prompts_per_step=1",
        "batch.samples_per_prompt=2",
        "batch.micro_batch=1",
        "trainer.max_completion_length=4",
        "trainer.max_steps=1",
        "evaluation.data=[]",
        "evaluation.problems=2",
        "evaluation.samples=1",
        "evaluation.k=[1]",
        "evaluation.after=false",
        "device=cpu",
        "report.tensorboard=false",
        folder=tmp_path,
    )
    assert f"model {folder}: no thinking switch, bf16 autocast over float32 weights on cpu" in capsys.readouterr().out
    stored = yaml.safe_load((path / "recipe.yaml").read_text())
    assert stored["trainer"]["bf16"] is True
    assert stored["optim"]["lr"] == 1e-6
    weights = load_file(path / "checkpoints" / "checkpoint-1" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    rows = json.loads((path / "symmetry.json").read_text())["parameters"]
    heads = {row["name"].split(".")[-2]: row["split"] for row in rows if ".self_attn." in row["name"]}
    assert heads["q_proj"] == "16 heads on rows"
    assert heads["k_proj"] == "8 heads on rows"
    assert heads["o_proj"] == "16 heads on columns"


def test_a_collapsing_run_is_stopped_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run(
        "recipe=grpo_math",
        "optim=adamw",
        "optim.lr=0.05",
        "batch.prompts_per_step=4",
        "trainer.max_steps=40",
        "guard.window=1",
        "guard.patience=2",
        "evaluation.every=1",
        "evaluation.problems=8",
        "evaluation.samples=2",
        "evaluation.k=[1]",
        folder=tmp_path,
    )
    result, output = summary(path), capsys.readouterr().out
    assert result["status"] == "collapsed"
    assert result["steps"] < 40
    assert "WARNING: collapsed" in output
    assert f"best weights: {path / 'checkpoints' / 'best'}" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recipe=grpo_math", "data.path=missing.jsonl"], "missing.jsonl"),
        (["recipe=grpo_math", "batch.micro_batch=7"], "batch.micro_batch=7"),
        (["recipe=grpo_math", "model=Qwen/No-Such", "data=arithmetic", "evaluation.data=[]"], "Qwen/No-Such"),
        (["recipe=grpo_math", "model=Qwen/No-Such", "data=Some/Set"], "Some/Set"),  # before torch is loaded
        (["recipe=grpo_math", "model=Qwen/Qwen3-0.6B", "data=arithmetic", "evaluation.data=[]"], "local copy"),
        (["recipe=grpo_math", "device=cuda"], "device=cuda"),
        (["recipe=grpo_math", "data=math500"], "data=math500"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert train.main([*arguments, f"output_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_evaluating_what_is_no_checkpoint_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").mkdir()
    for target in (tmp_path / "nothing", tmp_path):
        assert evaluate.main([f"checkpoint={target}"]) == 2
        assert "\n" not in capsys.readouterr().err.strip()


def test_a_data_set_of_the_hub_that_is_not_there_or_has_other_columns_is_said_before_libraries_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "_runner", lambda **_: pytest.fail("libraries were loaded"))
    (tmp_path / "train.jsonl").write_text('{"question": "1+1=?", "answer": "2"}\n' * 2)

    def fetch(repo: str, **_: object) -> Path:
        if repo == "me/gone":
            raise ConnectionError("cannot fetch dataset me/gone: the hub has no such public repository")
        return tmp_path

    monkeypatch.setattr("rlspec.hub.fetch_snapshot", fetch)
    for name, message in (("me/gone", "no such public repository"), ("me/there", "no column 'problem'")):
        arguments = ["recipe=debug_grpo", f"data={name}", "data.split=train", "data.test_split=null"]
        assert train.main([*arguments, f"output_dir={tmp_path / 'runs'}"]) == 2
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and "loading" not in said.out
