"""The one declaration of settings: its words are those of the tables that run them, and everybody takes it whole."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import get_args

import torch
from torch import nn

from rlspec.optim import SpectralOptimizer
from rlspec.optim.engine.updates import COMPUTE_DTYPES
from rlspec.optim.kernels.normalisers import NORMALISERS
from rlspec.optim.settings import OptimizerSettings, Running, declared_types, defaults
from rlspec.optim.stages.constraints import METHODS


def test_words_are_those_of_the_tables() -> None:
    words = {name: set(get_args(kind)) for name, kind in declared_types(OptimizerSettings).items()}
    assert words["normalise"] == set(NORMALISERS)
    assert words["cap_method"] == set(METHODS)
    assert words["compute_dtype"] == {"auto", *COMPUTE_DTYPES}


def test_it_needs_no_torch() -> None:
    code = "import sys, rlspec.optim.settings, rlspec.config.schema; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_setting_is_a_key_of_a_group_with_its_default_and_is_no_argument_of_its_own() -> None:
    optimizer = SpectralOptimizer([nn.Parameter(torch.zeros(2, 2))])
    assert defaults(OptimizerSettings).items() <= optimizer.param_groups[0].items()
    assert {name: getattr(optimizer, name) for name in defaults(Running)} == defaults(Running)
    assert (
        not inspect.signature(SpectralOptimizer).parameters.keys()
        & (defaults(OptimizerSettings) | defaults(Running)).keys()
    )


def test_the_recipe_has_every_setting_with_its_default() -> None:
    from rlspec.config.schema import Optim, RoleSettings

    section = Optim(name="muon", rule="muon").model_dump()
    assert defaults(OptimizerSettings).items() <= section.items()
    assert {name: None for name in ("rule", "split", "weight_decay")}.items() <= RoleSettings().model_dump().items()
