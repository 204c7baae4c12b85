"""A server that speaks as much of vLLM's HTTP protocol as TRL's client uses, with a transformers model behind it.

Weights travel by a queue in the place of NCCL; all else (health, models, server info, start, announce, finish,
completions, cache) is HTTP as `trl.generation.vllm_client` has it.
"""

from __future__ import annotations

import copy
import json
import queue
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import nn


class StandIn:
    """The server; `sharpness` multiplies its logits, as an engine with arithmetic of its own differs from the trainer.

    Attributes:
        model: its own copy of the policy, which starts with other weights.
        syncs: the state after every update of weights.
        asked: bodies of all requests for completions.
        given: (index of the weights, prompt, completion, log-probabilities) of all answers.
    """

    def __init__(self, model: nn.Module, *, sharpness: float = 1.0, logprobs_mode: str = "processed_logprobs") -> None:
        self.model = copy.deepcopy(model)
        for param in self.model.parameters():
            nn.init.normal_(param, std=0.02)
        self.sharpness, self.logprobs_mode = sharpness, logprobs_mode
        self.wire: queue.Queue[tuple[str, torch.Tensor]] = queue.Queue()
        self.syncs: list[dict[str, torch.Tensor]] = []
        self.asked: list[dict[str, Any]] = []
        self.given: list[tuple[int, list[int], list[int], list[float]]] = []
        self.paths: list[str] = []
        handler = type("Handler", (_Handler,), {"stand_in": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def answer(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.paths.append(path)
        if path == "/v1/models":
            return {"data": [{"id": "stand-in"}]}
        if path == "/server_info":
            config = {
                "model_config": {"logprobs_mode": self.logprobs_mode},
                "weight_transfer_config": {"backend": "nccl"},
            }
            return {"vllm_config": config}
        if path == "/get_world_size":
            return {"world_size": 1}
        if path == "/update_weights":
            self.receive(body["update_info"])
        if path == "/v1/completions":
            self.asked.append(body)
            return {"choices": [choice for prompt in body["prompt"] for choice in self.complete(prompt, body)]}
        return {"success": True}

    def receive(self, announced: dict[str, Any]) -> None:
        params = dict(self.model.named_parameters())
        for name, dtype, shape in zip(*(announced[key] for key in ("names", "dtype_names", "shapes")), strict=True):
            sent, value = self.wire.get(timeout=60)
            assert (sent, str(value.dtype), list(value.shape)) == (name, f"torch.{dtype}", shape)
            with torch.no_grad():
                params[name].copy_(value)
        self.syncs.append({name: value.detach().clone() for name, value in params.items()})

    @torch.no_grad()
    def complete(self, prompt: list[int], body: dict[str, Any]) -> list[dict[str, Any]]:
        """Token by token, without a cache; greedy at temperature 0."""
        generator = torch.Generator().manual_seed(body.get("seed", 0) + len(self.given))
        rows = torch.tensor([prompt] * body["n"])
        logps = torch.zeros(body["n"], 0)
        for _ in range(body["max_tokens"]):
            logits = self.model(rows).logits[:, -1].float() * self.sharpness
            scores = (logits / (body["temperature"] or 1.0)).log_softmax(-1)
            if body["temperature"]:
                drawn = torch.multinomial(scores.exp(), 1, generator=generator)
            else:
                drawn = scores.argmax(-1, keepdim=True)
            rows, logps = torch.cat([rows, drawn], 1), torch.cat([logps, scores.gather(1, drawn)], 1)
        choices = []
        end = self.model.config.eos_token_id
        for drawn_row, all_values in zip(rows[:, len(prompt) :].tolist(), logps.tolist(), strict=True):
            length = drawn_row.index(end) + 1 if end in drawn_row else len(drawn_row)
            row, values = drawn_row[:length], all_values[:length]
            self.given.append((len(self.syncs) - 1, prompt, row, values))
            tokens = [f"token_id:{token}" for token in row]
            logprobs = {"tokens": tokens, "token_logprobs": values, "top_logprobs": [None] * len(row)}
            choices.append({"prompt_token_ids": prompt, "token_ids": row, "logprobs": logprobs})
        return choices


class _Handler(BaseHTTPRequestHandler):
    stand_in: StandIn

    def do_GET(self) -> None:
        self.reply({})

    def do_POST(self) -> None:
        self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}"))

    def reply(self, body: dict[str, Any]) -> None:
        try:
            content = json.dumps(self.stand_in.answer(self.path.partition("?")[0], body)).encode()
        except ConnectionAbortedError:  # as a server that dies while it is asked
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def connect(patch: Any, stand_in: StandIn) -> None:
    """Let TRL believe that vLLM is installed, and send weights by the queue."""
    import importlib.util

    from trl.generation import vllm_client, vllm_generation

    class Engine:
        @staticmethod
        def trainer_send_weights(iterator: Any, trainer_args: Any) -> None:
            for name, value in iterator:
                stand_in.wire.put((name, value.detach().clone()))

    def init_communicator(client: Any, device: Any = 0) -> None:
        """As TRL's, without CUDA's rendezvous."""
        assert client.get_server_info()["weight_transfer_config"] is not None
        assert client.get_world_size() == 1
        client._post(f"{client.base_url}/init_weight_transfer_engine", json={"init_info": {}})

    find = importlib.util.find_spec
    patch.setattr(importlib.util, "find_spec", lambda name, *rest: object() if name == "vllm" else find(name, *rest))
    for module in (vllm_client, vllm_generation):
        patch.setattr(module, "is_vllm_available", lambda *_, **__: True)
    patch.setattr(vllm_client, "NCCLWeightTransferEngine", Engine, raising=False)
    patch.setattr(vllm_client, "NCCLTrainerSendWeightsArgs", lambda **_: None, raising=False)
    patch.setattr(vllm_client.VLLMClient, "init_communicator", init_communicator)
