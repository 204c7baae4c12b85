"""`python -m rlspec.rules`: every rule once, its options, and the table that the README shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rlspec.config.rules import list_optimizers
from rlspec.rules import main

README = Path(__file__).resolve().parents[1] / "rlspec/optim/README.md"


def test_help_and_mistakes_are_answered_without_torch() -> None:
    code = (
        "import sys; from rlspec.rules import main; codes = [main(['--help']), main(['pin']), main(['rule=muon'])]; "
        "assert 'torch' not in sys.modules; assert codes == [0, 2, 2], codes"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "usage: python -m rlspec.rules" in result.stdout
    assert "name=pin: no rule; did you mean pion?" in result.stderr


def test_all_rules_have_a_line_with_their_composition(capsys: pytest.CaptureFixture[str]) -> None:
    from rlspec.optim import RULES

    assert main(["all"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert set(RULES) <= set(lines)
    assert "ema . normalise . high_pass" in lines["pion"]
    assert "heavy_ball . clip_outliers . normalise . fitted_polar" in lines["root"]
    assert " 2.00 " in lines["adamw"]


@pytest.mark.parametrize("name", list_optimizers())
def test_one_optimizer_is_described_with_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: ")
    if name.startswith(("muon", "namo", "normuon")):
        assert "optim.options.schedule=keller" in out


def test_the_readme_shows_the_table_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for table in ("markdown", "papers"):
        assert main([table]) == 0
        assert capsys.readouterr().out in README.read_text(encoding="utf-8")
