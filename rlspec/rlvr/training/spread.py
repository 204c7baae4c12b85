"""A run whose rewards never differ learns nothing: it is ended, with the likely cause; where they did once, warned."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from rlspec.display import Display
from rlspec.errors import UserError
from rlspec.rlvr.training.rewards import VerifierReward

_NO_CAUSE = (
    "see the answers in evaluations/; the problems may be too hard, or the golds of another form than the answers"
)
_UNREACHED = "see reward.options.url, its model, and the key that reward.options.key_variable names"
_CAUSES = {
    "no_box": r"say in model.instruction that the answer belongs in \boxed{}, or set reward.options.extract",
    "no_answer": "say in model.instruction how to answer, or set reward.options.extract",
    "unterminated_box": "answers are cut off: raise trainer.max_completion_length",
    "truncated_thinking": "thoughts are cut off: raise trainer.max_completion_length, or switch thinking off",
    "no_code": "say in model.instruction that the program belongs in a fenced block",
    "no_match": "compare reward.options.pattern with the answers in evaluations/",
    "not_judged": "the reward returned None for them",
}


GROUPS_ALIKE = "groups_without_spread"  # share of the groups in which every answer earned the same
_MOSTLY_CUT = 0.9  # no other reason matters where so many answers have no end


class SpreadGuard(TrainerCallback):
    """Ends a run in which nothing can be learnt: in no group of so many steps did rewards differ.

    Advantages are then 0 everywhere. Where every answer is right there is nothing left to learn, which is said once.
    A run that has learnt something goes on and keeps its weights; the likely cause is said once per stretch.

    Args:
        rewards: of the run, the main one first.
        display: for warnings.
        steps: so many without spread in a row.
        seen: rewards did differ before a resume.
    """

    def __init__(self, rewards: Sequence[VerifierReward], display: Display, steps: int, *, seen: bool = False) -> None:
        self.rewards = rewards
        self.display = display
        self.limit = steps
        self.without = 0
        self.seen = seen  # any spread at all
        self.cut = 0.0  # share of the last answers that ended at the limit

    def on_log(self, args: Any, state: TrainerState, control: TrainerControl, logs: Any = None, **_: Any) -> None:
        """Count the steps that brought new rollouts.

        Raises:
            UserError: The likely cause, in one line.
        """
        share = (logs or {}).get(GROUPS_ALIKE, (logs or {}).get("frac_reward_zero_std"))
        if share is None:
            return
        reward = (logs or {}).get("reward", 0.0)
        if reward is None or math.isnan(reward):  # no answer was judged, which TRL takes for spread
            share = 1.0
        self.cut = (logs or {}).get("completions/clipped_ratio", 0.0)
        self.seen = self.seen or share < 1
        before, every = self.without, max(1, int(args.logging_steps))
        self.without = 0 if share < 1 else before + every
        if self.without < self.limit:
            return
        nothing = f"in no group of {self.limit} steps did rewards differ, so that nothing is learnt"
        right = self.all_right()
        if not right and not self.seen:
            raise UserError(f"{nothing}: {self.cause()}")
        if before < self.limit:
            solved = f"every answer of {self.limit} steps was right: nothing is left to learn here"
            self.display.warn(solved if right else f"{nothing}: {self.cause()}")

    def on_train_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """A run too short for the limit may never have had anything to learn from."""
        if not self.seen and self.without and self.without < self.limit and not self.all_right():
            self.display.warn(f"in no group of the run did rewards differ, so that nothing was learnt: {self.cause()}")

    def all_right(self) -> bool:
        """Whether the first reward passed every answer of the last steps that it judged."""
        reward = self.rewards[0]
        scores = set[float]().union(*list(reward.recent_scores)[-self.limit :])
        return bool(scores) and min(scores) >= reward.verifier.passes

    def cause(self) -> str:
        """By the reasons of the last steps."""
        reward = self.rewards[0]
        if self.cut > _MOSTLY_CUT:
            return f"{self.cut:.0%} of the answers are cut off at their limit; raise trainer.max_completion_length"
        counts = sum(list(reward.recent)[-self.limit :], Counter[str]())
        reason, count = counts.most_common(1)[0] if counts else ("nothing judged", 0)
        share = f"{count / max(1, counts.total()):.0%} of the answers are {reason}"
        cause = _UNREACHED if reason.startswith("judge_") else _CAUSES.get(reason, _NO_CAUSE)
        return f"{share} by reward {reward.verifier.name}; {cause}"
