"""The change of weights, cut: against SVDs in float64, and on folders of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlspec.checkpoint import verify_checkpoint
from rlspec.diagnostics.truncation import truncate_change, truncate_checkpoint
from rlspec.errors import CheckpointError, ConfigError


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_svd(before: Tensor, after: Tensor, kept: slice) -> Tensor:
    u, s, vh = torch.linalg.svd(after - before, full_matrices=False)
    return before + u[:, kept] @ torch.diag(s[kept]) @ vh[kept]


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (40, 3)])
@pytest.mark.parametrize("keep", [0, 1, 3, 99])
def test_so_many_directions_are_kept_or_cut(shape: tuple[int, int], keep: int) -> None:
    before, after = random(*shape), random(*shape, seed=1)
    top, rank, share = truncate_change(before, after, keep)
    assert torch.allclose(top, by_svd(before, after, slice(0, keep)), atol=1e-9)
    assert rank == min(keep, *shape)
    values = torch.linalg.svdvals(after - before).square()
    assert share == pytest.approx(float(values[:keep].sum() / values.sum()))
    tail, rest, other = truncate_change(before, after, keep, "tail")
    assert torch.allclose(top + tail - before, after, atol=1e-12)
    assert (rank + rest, share + other) == (min(shape), pytest.approx(1.0))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99, 1.0])
def test_a_share_keeps_the_fewest_directions_that_hold_it(share: float) -> None:
    before, after = random(8, 12), random(8, 12, seed=1)
    values = torch.linalg.svdvals(after - before).square()
    needed = 1 + int((values.cumsum(0) / values.sum() < share - 1e-12).sum())
    result, rank, held = truncate_change(before, after, share)
    assert rank == needed and held >= share - 1e-9
    assert torch.allclose(result, by_svd(before, after, slice(0, needed)), atol=1e-9)


def test_a_stack_is_cut_matrix_by_matrix_and_no_change_stays_none() -> None:
    before, after = random(3, 6, 9), random(3, 6, 9, seed=1)
    after[2] = before[2]
    result, rank, _ = truncate_change(before, after, 2)
    assert rank == 6
    for position in range(3):
        assert torch.allclose(result[position], by_svd(before[position], after[position], slice(0, 2)), atol=1e-9)
    same, rank, share = truncate_change(before, before, 0.5)
    assert torch.equal(same, before) and (rank, share) == (0, 1.0)


def folders(tmp_path: Path) -> tuple[Path, Path]:
    for number, name in enumerate(("before", "after")):
        folder = tmp_path / name
        folder.mkdir()
        weights = {"layer.weight": random(8, 12, seed=number).float(), "norm.weight": random(8, seed=number).float()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text("{}")
        (folder / "optimizer.pt").write_text("heavy")
    return tmp_path / "before", tmp_path / "after"


def test_a_cut_checkpoint_is_whole_and_can_be_evaluated(tmp_path: Path) -> None:
    before, after = folders(tmp_path)
    (cut,) = truncate_checkpoint(str(before), str(after), tmp_path / "cut", 2)
    old, new = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    found = load_file(tmp_path / "cut" / "model.safetensors")
    change = (found["layer.weight"] - old["layer.weight"]).double()
    assert int(torch.linalg.matrix_rank(change, rtol=1e-5)) == 2
    assert torch.equal(found["norm.weight"], new["norm.weight"])
    assert (cut.name, cut.rank) == ("layer.weight", 2)
    assert cut.change == pytest.approx(float((new["layer.weight"] - old["layer.weight"]).norm()), rel=1e-6)
    assert {file.name for file in (tmp_path / "cut").iterdir()} == {"model.safetensors", "config.json", "manifest.json"}
    verify_checkpoint(tmp_path / "cut")


def test_what_does_not_fit_is_refused_by_name_and_leaves_nothing(tmp_path: Path) -> None:
    before, after = folders(tmp_path)
    save_file({"other.weight": torch.zeros(2, 2)}, before / "model.safetensors")
    with pytest.raises(CheckpointError, match="layer.weight is not in"):
        truncate_checkpoint(str(before), str(after), tmp_path / "cut", 2)
    assert not (tmp_path / "cut").exists()
    (after / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="merge it"):
        truncate_checkpoint(str(before), str(after), tmp_path / "cut", 2)
    with pytest.raises(CheckpointError, match="no such folder"):
        truncate_checkpoint(str(tmp_path / "nowhere"), str(after), tmp_path / "cut", 2)
    with pytest.raises(ConfigError, match="not the same model"):
        truncate_change(torch.zeros(2, 3), torch.zeros(3, 2), 1)
    for keep in (0.0, 1.5, -1, True):
        with pytest.raises(ConfigError, match="keep="):
            truncate_change(torch.zeros(2, 2), torch.zeros(2, 2), keep)


def test_the_command_writes_the_cut_model_and_says_what_it_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlspec.truncate import main

    folders = [tmp_path / name for name in ("before", "after")]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        save_file({"w": random(6, 10, seed=seed), "norm": random(6, seed=seed)}, folder / "model.safetensors")
    paths = [f"before={folders[0]}", f"after={folders[1]}"]
    assert main([*paths, f"out={tmp_path / 'a cut'}", "rank=2"]) == 0
    out = capsys.readouterr().out
    assert "6 x 10      2 directions" in out and f"python -m rlspec.evaluate checkpoint='{tmp_path}/a cut'" in out
    before, after, cut = (load_file(folder / "model.safetensors") for folder in (*folders, tmp_path / "a cut"))
    assert torch.allclose(cut["w"], by_svd(before["w"], after["w"], slice(0, 2)), atol=1e-9)
    assert main([*paths, f"out={tmp_path / 'tail'}", "keep=1", "part=tail"]) == 0
    assert torch.allclose(load_file(tmp_path / "tail" / "model.safetensors")["w"], before["w"], atol=1e-9)
    for given, said in (
        ([], "give exactly one of keep= and rank="),
        (["keep=0.5", "rank=2"], "give exactly one of keep= and rank="),
        (["keep=1.5"], "keep=1.5: must be a share"),
        (["rank=-1"], "rank=-1: must be 0 or more"),
        (["rank=1"], "is there already; give another folder"),
    ):
        capsys.readouterr()
        assert main([*paths, f"out={tmp_path / 'a cut'}", *given]) == 2
        assert said in capsys.readouterr().err
