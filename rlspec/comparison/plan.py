"""What a comparison is going to do, written down and hashed before its first run."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from rlspec.config.messages import explain, join_lines
from rlspec.config.schema import Key, Section
from rlspec.config.values import read_yaml
from rlspec.errors import ConfigError, nearest

Match = Literal["published", "rms", "spectral"]
MATCHES: Mapping[str, tuple[str, ...]] = {
    "published": ("optim.settings=paper",),
    "rms": ("optim.adjust_lr=match_rms_adamw",),
    "spectral": ("optim.adjust_lr=match_spectral_adamw",),
}
"""What `match=` sets: whose step is as long as whose."""
_OF_THE_COMPARISON = ("run", "output_dir", "resume")
LONGEST = 246  # bytes of a folder's name, of 255, before a hash
_NAMED = ("recipe", "model", "data", "optim", "policy", "env", "dataset", "match")  # whose value needs no key beside it
Rate = Annotated[float, Field(gt=0)]


class Tune(Section):
    """How each arm's learning rate is chosen: the same budget for every arm, on seeds that are never reported."""

    lr: Annotated[list[Rate], Key("the grid, of every arm", "[1e-5,1e-4]")] = []
    lr_of: Annotated[dict[str, list[Rate]], Key("another grid of one arm", "[...]")] = {}
    range: Annotated[list[Rate] | None, Key("instead of a grid: log-uniform between two rates", "[LOW,HIGH]")] = None
    trials: Annotated[int, Key("rates drawn from the range, the same for every arm", "N")] = Field(5, ge=2)
    seeds: Annotated[list[int], Key("of the tuning runs", "[100]")] = [100]
    overrides: Annotated[list[str], Key("of the tuning runs alone, for example data.seed=7", "[...]")] = []
    extend: Annotated[int, Key("further rates where the best one of a grid is the lowest or the highest", "N")] = Field(
        2, ge=0
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.range is not None and (len(self.range) != 2 or self.range[0] >= self.range[1]):
            raise ValueError(f"tune.range={self.range}: two rates, the lower one first")
        if (self.lr or self.lr_of) and self.range is not None:
            raise ValueError("tune.lr and tune.range: a grid or a range, not both")
        grids = [self.lr, *self.lr_of.values()]
        if any(len(set(grid)) < len(grid) for grid in grids) or any(len(grid) == 1 for grid in grids):
            raise ValueError("tune.lr: at least two rates, all different; one rate needs no tuning: optim.lr=RATE")
        if not self.seeds:
            raise ValueError("tune.seeds: at least one")
        return self

    @property
    def wanted(self) -> bool:
        """Whether there is anything to choose from."""
        return bool(self.lr or self.lr_of or self.range)

    def rates(self, arm: str) -> list[float]:
        """Of an arm, ascending. A range is sampled in equal parts of its logarithm, once for all arms."""
        if self.range is None:
            return sorted(self.lr_of.get(arm, self.lr))
        import numpy

        low, high = (math.log(rate) for rate in self.range)
        parts = numpy.arange(self.trials) + numpy.random.default_rng(0).random(self.trials)
        return [float(f"{math.exp(low + (high - low) * part / self.trials):.3g}") for part in parts]


class Plan(Section):
    """A comparison: arms, each a list of overrides, and seeds."""

    recipe: str | None = None  # None: every arm names its own
    overrides: list[str] = []  # of every run
    arms: dict[str, list[str]]  # in the order in which they run
    seeds: list[Annotated[int, Field(ge=0)]] = [0]  # of the claim
    tune: Tune = Tune()
    score: str | None = None  # what a run's summary measures, dots for what is inside; None: by the recipe's kind
    baseline: str | None = None  # arm that the others are paired with
    target: float | None = Field(None, gt=0, le=1)  # of the score: time to it
    equal: Literal["steps", "samples", "seconds"] = "steps"  # what every arm has as much of
    kl: bool = False  # measure how far each policy went from its start
    hypotheses: list[str] = []

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not self.arms:
            raise ValueError("arms: none")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seed={self.seeds}: at least one, all different")
        if shared := set(self.seeds) & set(self.tune.seeds if self.tune.wanted else []):
            raise ValueError(f"tune.seeds: {min(shared)} is a seed of the claim too; rates are chosen on others")
        for key, name in (("baseline", self.baseline), *(("tune.lr_of", arm) for arm in self.tune.lr_of)):
            if name is not None and name not in self.arms:
                raise ValueError(f"{key}: no arm {name}; {nearest(name, self.arms)}")
        if self.tune.wanted and (missing := [arm for arm in self.arms if not self.tune.rates(arm)]):
            raise ValueError(f"tune.lr: no rates for {missing[0]}; give tune.lr, or tune.lr_of.{missing[0]}")
        own = [text for arm in self.arms.values() for text in (*self.overrides, *arm, *self.tune.overrides)]
        if self.tune.wanted and (fixed := [text for text in own if key_of_override(text) == "optim.lr"]):
            raise ValueError(f"{fixed[0]}: the rate is tuned; leave one of the two out")
        if placed := [text for text in own if key_of_override(text) in _OF_THE_COMPARISON]:
            raise ValueError(f"{placed[0]}: the comparison says where its runs lie; leave it out")
        if seeded := [text for text in own if key_of_override(text) == "seed"]:
            raise ValueError(f"{seeded[0]}: seeds are those of the plan; write seeds: [...], or seed=0,1 on a line")
        if self.equal == "seconds" and not (self.tune.wanted and self.baseline):
            raise ValueError("equal=seconds: needs baseline=ARM and tuning runs, in which a step's time is measured")
        slugs = [slug(name) for name in self.arms]
        if len(set(slugs)) < len(slugs):
            raise ValueError(f"two arms would share the folder {max(slugs, key=slugs.count)}")
        return self

    @property
    def sha256(self) -> str:
        """Of the plan's content, whatever its file's comments and order of keys; the order of arms counts."""
        content = [*self.model_dump(mode="json").items(), ("order", list(self.arms))]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def arguments(self, arm: str, *, seed: int, lr: float | None, tuning: bool = False) -> tuple[str, ...]:
        """The command line of a run, without its place."""
        recipe = [f"recipe={self.recipe}"] if self.recipe else []
        rate = [f"optim.lr={lr:g}"] if lr is not None else []
        own = self.tune.overrides if tuning else []
        return merged([*recipe, *self.overrides, *self.arms[arm], *own, *rate, f"seed={seed}"])


def merged(overrides: Sequence[str]) -> tuple[str, ...]:
    """Of two overrides of one key the later one."""
    return tuple({key_of_override(override): override for override in overrides}.values())


def key_of_override(override: str) -> str:
    """Without Hydra's signs before it."""
    return override.partition("=")[0].lstrip("+~")


def slug(text: str) -> str:
    """A name as a folder's: neither this folder, nor the one above, nor longer than file systems allow."""
    name = "".join(character if character.isalnum() or character in "._-" else "_" for character in text)
    if not name.strip("."):
        return "_" * max(1, len(name))
    if len(name.encode()) <= LONGEST:
        return name
    return f"{name.encode()[:LONGEST].decode(errors='ignore')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def split_values(text: str) -> list[str]:
    """Cut at commas outside of brackets and quotes: `a,b` are two values, `[1,8]` and `'a, b'` are one."""
    values, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and not values[-1].strip():
            quote = character
        else:
            depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0 and not quote:
            values.append("")
        else:
            values[-1] += character
    return values


def plan_of_values(overrides: Sequence[str], matches: Sequence[str] = (), **further: Any) -> Plan:
    """Every combination of the comma-separated values is an arm; seeds are `seed=0,1,2`.

    Args:
        overrides: key=value[,value] as on the command line.
        matches: Values of `match`.
        further: Fields of the plan.

    Raises:
        ConfigError: One line per mistake.
    """
    values: dict[str, list[str]] = {}
    for key, _, text in (override.partition("=") for override in overrides):
        choices = split_values(text)
        if key in values and len(choices) + len(values[key]) > 2:
            raise ConfigError(f"{key}: given twice; write all its values behind one {key}=")
        values[key] = choices
    seeds = values.pop("seed", ["0"])
    if bad := [seed for seed in seeds if not seed.isdecimal()]:
        raise ConfigError(f"seed={bad[0]}: whole numbers from 0")
    if matches:
        values["match"] = list(matches)
    varying = [key for key, choices in values.items() if len(choices) > 1]
    arms: dict[str, list[str]] = {}
    for combination in itertools.product(*(values[key] for key in varying)):
        chosen = dict(zip(varying, combination, strict=True))
        name = ", ".join(value if key in _NAMED else f"{key}={value}" for key, value in chosen.items()) or "all"
        if name in arms:
            raise ConfigError(f"{name}: twice")
        arms[name] = [text for key, value in chosen.items() for text in _override(key, value)]
    fixed = [text for key, choices in values.items() if key not in varying for text in _override(key, choices[0])]
    recipe = next((text.partition("=")[2] for text in fixed if text.startswith("recipe=")), None)
    common = [text for text in fixed if not text.startswith("recipe=")]
    return checked_plan(
        {**further, "recipe": recipe, "overrides": common, "arms": arms, "seeds": list(map(int, seeds))}
    )


def _override(key: str, value: str) -> tuple[str, ...]:
    return MATCHES[value] if key == "match" else (f"{key}={value}",)


def read_plan(path: Path) -> Plan:
    """A plan from its file.

    Raises:
        ConfigError: There is none, or it is no plan; one line per mistake.
    """
    import yaml

    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"plan={path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"plan={path}: no text") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"plan={path}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"plan={path}: no plan; it has recipe, arms, seeds and tune")
    return checked_plan(content)


def checked_plan(values: Mapping[str, Any]) -> Plan:
    """A plan from a mapping.

    Raises:
        ConfigError: One line per mistake.
    """
    try:
        return Plan.model_validate_json(json.dumps(values))
    except ValidationError as error:
        raise ConfigError(join_lines(explain(error, Plan))) from None
