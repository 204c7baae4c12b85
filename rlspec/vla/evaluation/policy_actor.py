"""A LeRobot policy with its processors, loaded as LeRobot loads it, acting in one environment."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np

from rlspec.checkpoint import MANIFEST
from rlspec.contract.features import ACTION
from rlspec.contract.policies import action_steps, chunk_length
from rlspec.errors import CheckpointError, ConfigError, UserError
from rlspec.vla.data.normalisation import unnormalised
from rlspec.vla.evaluation.actors import Actor
from rlspec.vla.evaluation.observation import to_batch
from rlspec.vla.evaluation.simulator import Action, Observation

if TYPE_CHECKING:
    from torch import nn

# Policies with fewer parameters than this gain nothing from several threads, and one thread gives the same numbers
# whatever the number of workers.
ONE_THREAD = 50_000_000
_QUEUES = ("_action_queue", "_queue")  # where policies keep the rest of a chunk; others: `_queues["action"]`


@dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from and how it acts.

    Attributes:
        path: A folder with LeRobot's config.json and model.safetensors, or a hub id.
        n_action_steps: Actions of a chunk that are executed; None: the policy's own number.
        replan_steps: The same where the user gave none; a shorter chunk is executed whole.
        device: "cpu", "cuda", or "auto".
        threads: CPU threads that a large policy may use.
    """

    path: str
    n_action_steps: int | None = None
    replan_steps: int | None = None
    device: str = "auto"
    threads: int = 1


class PolicyActor(Actor):
    """Runs `preprocessor -> select_action -> postprocessor`, as LeRobot's own evaluation does.

    Attributes:
        policy: A PreTrainedPolicy, or PEFT's wrapper of one.
        config: Its config.
    """

    def __init__(self, policy: Any, preprocessor: Any, postprocessor: Any, config: Any) -> None:
        self.policy = policy
        self.preprocessor = preprocessor
        self.postprocessor = postprocessor
        self.config = config
        self._bare = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        self._instruction = ""

    def reset(self, env: gymnasium.Env[Any, Any], seed: int) -> None:
        """Forget the last episode; the policy's random numbers start from the seed."""
        import torch

        self._instruction = env.unwrapped.instruction  # type: ignore[attr-defined]
        self.policy.reset()
        self.preprocessor.reset()
        self.postprocessor.reset()
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)

    def needs_images(self) -> bool:
        """Whether the chunk is used up; always, where the policy keeps past observations or no known queue."""
        if getattr(self.config, "n_obs_steps", 1) > 1:
            return True
        return not self._queue()

    def _queue(self) -> deque[Any] | None:
        found = next((queue for name in _QUEUES if (queue := getattr(self._bare, name, None)) is not None), None)
        if found is None and isinstance(queues := getattr(self._bare, "_queues", None), dict):
            found = queues.get(ACTION)
        return found

    def act(self, observation: Observation) -> Action:
        """The next action, in the environment's units."""
        import torch

        batch = self.preprocessor(to_batch(observation, self._instruction))
        with torch.inference_mode():
            action = self.policy.select_action(batch)
        values: Action = self.postprocessor(action).squeeze(0).float().cpu().numpy()
        return values

    def describe(self) -> dict[str, Any] | None:
        """What a report has to say about the policy."""
        return {
            "type": self.config.type,
            "parameters": sum(parameter.numel() for parameter in self.policy.parameters()),
            "n_action_steps": action_steps(self.config),
            "chunk_size": chunk_length(self.config),
            "device": str(self.config.device),
        }


def load_policy(source: PolicySource) -> PolicyActor:
    """Load a policy and its processors by LeRobot's own functions.

    Raises:
        CheckpointError: It cannot be loaded.
        ConfigError: n_action_steps is larger than the chunk.
    """
    register_policies()
    try:
        with contextlib.redirect_stdout(sys.stderr if os.environ.get("RLSPEC_DEBUG") else _Nowhere()):
            return _load(source)
    except UserError:
        raise
    except Exception as error:  # LeRobot, the hub, safetensors and torch each have errors of their own
        from rlspec.hub import one_line, refusal

        reason = refusal(error) or one_line(error, 400)
        raise CheckpointError(f"{source.path}: this policy cannot be loaded: {reason}") from error


class _Nowhere:
    """A stream for libraries that print while they load."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def register_policies() -> None:
    """Make rlspec's own policies known to LeRobot."""
    importlib.import_module("rlspec.vla.policies")


def _load(source: PolicySource) -> PolicyActor:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import make_pre_post_processors

    config: Any = PreTrainedConfig.from_pretrained(source.path)
    config.device = _choose_device(source.device)
    if source.n_action_steps is not None:
        _set_action_steps(config, source.n_action_steps)
    elif source.replan_steps is not None and hasattr(config, "n_action_steps"):
        config.n_action_steps = min(source.replan_steps, chunk_length(config) or source.replan_steps)
    config.pretrained_path = source.path
    policy = _load_weights(config, source.path).to(config.device).eval()
    _share_cores(policy, source.threads)
    preprocessor, postprocessor = make_pre_post_processors(
        config, pretrained_path=source.path, preprocessor_overrides={"device_processor": {"device": config.device}}
    )
    if faults := list(unnormalised(config, preprocessor, postprocessor)):
        raise CheckpointError(
            f"{source.path}: {faults[0]}; it would act on numbers as they are: fine-tune it on data of your robot "
            "(policy.path=...), or mend the statistics in its processors"
        )
    return PolicyActor(policy, preprocessor, postprocessor, config)


def _load_weights(config: Any, path: str) -> nn.Module:
    """Weights, or PEFT adapters on the policy that their config names."""
    from lerobot.policies.factory import get_policy_class

    policy_class: Any = get_policy_class(config.type)
    if not config.use_peft:
        # LeRobot passes over weights that are missing, for the sake of old checkpoints; ours must be whole.
        ours = config.type.startswith("rlspec_") or (Path(path) / MANIFEST).is_file()
        strict = {"strict": True} if ours else {}
        policy: nn.Module = policy_class.from_pretrained(path, config=config, **strict)
        return policy
    from rlspec.vla.policies.adapters import adapted

    return adapted(lambda base: policy_class.from_pretrained(base, config=config), path)


def _choose_device(device: str) -> str:
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _set_action_steps(config: Any, steps: int) -> None:
    chunk = chunk_length(config)
    if not hasattr(config, "n_action_steps"):
        raise ConfigError(f"evaluation.n_action_steps={steps}: policies of type {config.type} do not act in chunks")
    if chunk is not None and steps > chunk:
        raise ConfigError(
            f"evaluation.n_action_steps={steps}: the policy predicts {chunk} actions; choose 1 to {chunk}"
        )
    config.n_action_steps = steps


def _share_cores(policy: nn.Module, threads: int) -> None:
    import torch

    parameters = sum(parameter.numel() for parameter in policy.parameters())
    torch.set_num_threads(1 if parameters < ONE_THREAD else threads)
