"""A printed recipe: the same values as the recipe, and a word on every key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
import yaml
from pydantic import BaseModel

from rlspec.comparison.measures import SCORES
from rlspec.config.annotated import annotated_recipe, meaning
from rlspec.config.load import dump_recipe, load_any_recipe
from rlspec.config.messages import section_of
from rlspec.config.paths import list_recipes
from rlspec.config.rlvr_schema import Recipe
from rlspec.config.schema import documented
from rlspec.config.vla_schema import VlaRecipe

NEEDS = {"vla_grpo_libero": ["policy.path=OWNER/NAME"]}  # has no start of its own


@pytest.mark.parametrize("name", list_recipes())
def test_comments_change_no_value(name: str) -> None:
    recipe = load_any_recipe([f"recipe={name}", *NEEDS.get(name, [])])
    text = annotated_recipe(recipe)
    assert text.count("#") > 80
    assert yaml.safe_load(text) == yaml.safe_load(dump_recipe(recipe))
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize(
    "override",
    [
        "model.system_prompt='one\n\ntwo # three'",
        r'model.instruction="# no comment"',
        f"model.instruction='{'word ' * 60}'",
        "reward=[math,{name:format,weight:0.1}]",
        "optim.overrides=[{pattern:'a#b',rule:muon}]",
        "model.system_prompt='日本語: # yes'",
    ],
)
def test_what_yaml_could_take_for_a_comment_or_text_stays_apart(override: str) -> None:
    recipe = load_any_recipe(["recipe=grpo_math", override])
    assert yaml.safe_load(annotated_recipe(recipe)) == yaml.safe_load(dump_recipe(recipe))


def test_keys_choices_and_trls_knobs_are_explained() -> None:
    text = annotated_recipe(load_any_recipe(["recipe=grpo_math", "trainer.beta=0.04"]))
    assert "  beta: 0.04  # KL coefficient\n" in text  # TRL's own words
    assert (
        "  by: here  # here: this process, or what the user's launcher made (here, torchrun, accelerate, slurm)" in text
    )
    assert "  momentum: 0.95  # of rules that average gradients\n" in text  # of a dataclass without pydantic
    assert "checkpoints:  # What is kept in `<run>/checkpoints`\n" in text  # a section says what it is


def _fields(section: type[BaseModel], path: str = "") -> Iterator[tuple[str, str]]:
    for name, field in section.model_fields.items():
        yield f"{path}{name}", meaning(section, name)
        below = section_of(field.annotation)
        if below is not None:
            yield from _fields(below, f"{path}{name}.")


@pytest.mark.parametrize("schema", [Recipe, VlaRecipe])
def test_every_key_has_a_meaning(schema: type[BaseModel]) -> None:
    found = dict(_fields(schema))
    assert len(found) > 100 and [path for path, about in found.items() if not about.split("(")[0].strip()] == []


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("checkpoints.keep_best", SCORES.values()),
        ("training.steps", ("grpo", "update_epochs", "mini_batches")),
        ("guard.spread", ("never had any",)),  # others are warned
    ],
)
def test_a_key_says_what_it_is_for_every_kind_of_run(path: str, words: Iterable[str]) -> None:
    about = (dict(_fields(Recipe)) | dict(_fields(VlaRecipe)))[path]
    assert [word for word in words if word not in about] == []


class _Base:
    """What it is.

    Attributes:
        low, high: Ends, in metres
            of the box.
        same: Of the base.

    Raises:
        ValueError: It is empty.
    """


class _Derived(_Base):
    """More.

    Attributes:
        same: Its own.
    """


def test_meanings_come_from_docstrings_and_a_class_goes_before_its_base() -> None:
    both = "Ends, in metres of the box"
    assert documented(_Derived) == {"low": both, "high": both, "same": "Its own"}
