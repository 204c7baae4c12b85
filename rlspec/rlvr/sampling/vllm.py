"""VLLM as the engine of rollouts and evaluations by TRL's own client: what it is asked, and how its faults are told."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any
from unittest import mock

from accelerate.utils import gather_object
from requests import RequestException
from transformers import PreTrainedTokenizerBase

from rlspec.errors import ConfigError, ServerError
from rlspec.hub import one_line
from rlspec.rlvr.sampling.generation import Policy, Sampler, Sampling

START = (
    'start it with VLLM_SERVER_DEV_MODE=1 vllm serve MODEL --weight-transfer-config \'{"backend": "nccl"}\' '
    "--logprobs-mode processed_logprobs"
)
_FAILED = "Request failed: "  # how TRL's client begins, in a bare Exception, what the server answered


@contextmanager
def explained(args: Any) -> Iterator[None]:
    """What TRL's client complains of, in one line.

    Args:
        args: TRL's configuration.

    Raises:
        ServerError: The server cannot be reached, or refuses.
        ConfigError: The server, or this machine, lacks what synchronising weights needs.
    """
    server = f"rollout.engine=vllm: the server at {args.vllm_server_base_url or _address(args)}"
    try:
        yield
    except (RequestException, ConnectionError) as error:
        reason = type(error.__cause__ or error).__name__
        raise ServerError(
            f"{server} does not answer ({reason}); {START}; resume=auto goes on from the last complete checkpoint"
        ) from error
    except NotImplementedError as error:
        raise ConfigError(f"rollout.engine=vllm: {one_line(error, 300)}") from error
    except Exception as error:
        if not str(error).startswith((_FAILED, "The vLLM server")):
            raise
        raise ServerError(f"{server} refuses ({one_line(error, 300).removeprefix(_FAILED)}); {START}") from error


def _address(args: Any) -> str:
    return f"http://{args.vllm_server_host}:{args.vllm_server_port}"


def check_engine(trainer: Any) -> None:
    """Refuse a server whose log-probabilities are not those that the tokens were drawn by.

    Raises:
        ConfigError: naming the server's option.
    """
    args = trainer.args
    if args.vllm_mode != "server" or not trainer.accelerator.is_main_process or args.temperature == 1.0:
        return
    mode = trainer.vllm_generation.vllm_client.get_server_info()["model_config"]["logprobs_mode"]
    if mode != "processed_logprobs":
        raise ConfigError(
            f"rollout.engine=vllm: the server runs with --logprobs-mode {mode}, whose probabilities know nothing of "
            f"trainer.temperature={args.temperature:g}, which biases the ratio; {START}"
        )


def sampler_of(trainer_of: Callable[[], Any]) -> Sampler:
    """In place of `generate_tokens`, by the engine of a trainer; every process calls it."""

    def sample(
        _: Policy,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        sampling: Sampling,
        *,
        seed: int,
        **__: Any,
    ) -> Iterable[tuple[int, list[int]]]:
        trainer = trainer_of()
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in prompts]
        with explained(trainer.args):
            return enumerate(_generate(trainer, ids, sampling, seed))

    return sample


def _generate(trainer: Any, ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[int]]:
    """New tokens of every prompt, by the newest weights."""
    engine = trainer.vllm_generation
    if trainer._last_loaded_step != trainer.state.global_step:  # as TRL does before rollouts
        engine.sync_weights()
        trainer._last_loaded_step = trainer.state.global_step
    served = engine.mode == "server"
    # TRL asks for equal numbers of prompts from all processes, and for neighbours that are the same prompt once.
    counts = gather_object([(len(ids), _copies(ids))])
    longest = max(length for length, _ in counts)
    if longest == 0:
        return []
    copies = 1 if sampling.temperature is None else math.gcd(*(each for _, each in counts))
    missing = longest - len(ids)
    padded = [*ids, *([ids[-1] if ids else trainer.processing_class("0")["input_ids"]] * missing)]
    settings: dict[str, Any] = {
        "temperature": sampling.temperature or 0.0,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "max_completion_length": sampling.max_new_tokens,
        "structured_outputs_regex": None,
        # A colocated engine would draw the same answer for every copy of a prompt.
        "generation_kwargs": {"seed": seed} if served else {},
    }
    with mock.patch.multiple(engine, **settings):
        _, rows, _, _ = engine.generate(prompts=padded, images=None, num_generations=copies if served else 1)
    return [list(row) for row in rows[: len(ids)]]


def _copies(ids: list[list[int]]) -> int:
    """How often every prompt is repeated among its neighbours, at least; 0 where there is none."""
    return math.gcd(*(len(list(same)) for _, same in groupby(ids)))
