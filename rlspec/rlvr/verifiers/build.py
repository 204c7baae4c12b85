"""From a recipe's rewards to verifiers."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlspec.config.functions import is_function
from rlspec.config.rewards import reward_options
from rlspec.config.rlvr_schema import Grader, Reward
from rlspec.rlvr.data.problems import Problem
from rlspec.rlvr.grading import GraderPool, only_plain
from rlspec.rlvr.user_code import load_callable
from rlspec.rlvr.verifiers.answers import MathVerifier
from rlspec.rlvr.verifiers.choice import ChoiceVerifier
from rlspec.rlvr.verifiers.environment import EnvironmentVerifier
from rlspec.rlvr.verifiers.length import LengthVerifier
from rlspec.rlvr.verifiers.patterns import FormatVerifier, RegexVerifier
from rlspec.rlvr.verifiers.verifier import Verifier, Verifiers


@dataclass(frozen=True)
class Circumstances:
    """What a verifier is built for, beside its options."""

    grader: Grader
    problems: Sequence[Problem]  # all that it will see
    thinking: bool  # the chat template asks for a thought


def build_verifiers(rewards: Sequence[Reward], circumstances: Circumstances) -> Verifiers:
    """The verifiers of a run; the caller closes them.

    Raises:
        ConfigError: One cannot be used here, in one line.
    """
    members: list[Verifier] = []
    for reward in rewards:
        build = _function if is_function(reward.name) else _BUILDERS[reward.name]
        verifier = build(reward, circumstances)
        if reward.pass_at is not None:
            verifier.passes = reward.pass_at
        same = sum(re.fullmatch(rf"{re.escape(verifier.name)}(_\d+)?", other.name) is not None for other in members)
        if same:  # functions of one name from two files: metrics bear the name
            verifier.name = f"{verifier.name}_{same + 1}"
        members.append(verifier)
    return Verifiers(members, [reward.weight for reward in rewards])


def _answers(reward: Reward, circumstances: Circumstances) -> Verifier:
    """Grading processes, started in the background; without computer algebra where no gold can need it."""
    golds = [problem.answer for problem in circumstances.problems]
    pool = GraderPool(**circumstances.grader.model_dump(), warm=not only_plain(golds))
    places = reward_options(reward).extract
    return MathVerifier(pool, thinking=circumstances.thinking, places=places, name=reward.name)


def _choice(reward: Reward, circumstances: Circumstances) -> Verifier:
    return ChoiceVerifier(reward_options(reward), thinking=circumstances.thinking)


def _regex(reward: Reward, circumstances: Circumstances) -> Verifier:
    return RegexVerifier(reward_options(reward), thinking=circumstances.thinking)


def _format(reward: Reward, circumstances: Circumstances) -> Verifier:
    return FormatVerifier(reward_options(reward))


def _length(reward: Reward, circumstances: Circumstances) -> Verifier:
    return LengthVerifier(reward_options(reward))


def _python(reward: Reward, circumstances: Circumstances) -> Verifier:
    from rlspec.rlvr.verifiers.programs import PythonVerifier

    options = reward_options(reward)
    return PythonVerifier(options, thinking=circumstances.thinking, workers=circumstances.grader.workers)


def _judge(reward: Reward, circumstances: Circumstances) -> Verifier:
    from rlspec.rlvr.verifiers.judge import JudgeVerifier

    return JudgeVerifier(reward_options(reward), thinking=circumstances.thinking)


def _function(reward: Reward, circumstances: Circumstances) -> Verifier:
    from rlspec.rlvr.verifiers.functions import FunctionVerifier

    return FunctionVerifier(load_callable(reward.name, "reward.name"), reward_options(reward))


def _environment(reward: Reward, circumstances: Circumstances) -> Verifier:
    return EnvironmentVerifier()


_BUILDERS: dict[str, Callable[[Reward, Circumstances], Verifier]] = {
    "math": _answers,
    "last_number": _answers,
    "choice": _choice,
    "regex": _regex,
    "format": _format,
    "length": _length,
    "python": _python,
    "judge": _judge,
    "environment": _environment,
}
