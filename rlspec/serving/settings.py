"""Settings of a server, and which of them do not go together."""

from __future__ import annotations

import ipaddress
import os
import ssl
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlspec.config.command import one_of
from rlspec.config.schema import Key, Section
from rlspec.contract.actions import ACTION_SPACES, EXECUTION_LAWS
from rlspec.contract.messages import MAX_HORIZON, MAX_HZ
from rlspec.contract.records import POLICY_RECORD
from rlspec.contract.wire import WireLimits
from rlspec.errors import ConfigError

_SHORTEST_TOKEN = 8


class ServerSettings(Section):
    """How a policy is served."""

    host: Annotated[str, Key("any other address wants a token", "ADDRESS", group="where")] = "127.0.0.1"
    port: Annotated[int, Key("0 takes a free one", "N")] = Field(8000, ge=0, le=65535)
    token: Annotated[str | None, Key("clients must show it (or the variable RLSPEC_TOKEN)", "TEXT")] = None
    token_file: Annotated[Path | None, Key("clients must show the token in it", "FILE")] = None
    tls_cert: Annotated[Path | None, Key("with tls_key=FILE (both PEM): serve wss://", "FILE")] = None
    tls_key: Annotated[Path | None, Key("of tls_cert", "FILE")] = None
    insecure: Annotated[bool, Key("allow an address that others can reach without a token", "true")] = False
    max_batch: Annotated[int, Key("requests answered in one forward pass", group="how")] = Field(8, ge=1)
    batch_window_ms: Annotated[float, Key("longest wait for requests of other sessions")] = Field(2.0, ge=0)
    max_sessions: Annotated[int, Key("robots at a time")] = Field(16, ge=1)
    max_queue: Annotated[int, Key("requests that may wait")] = Field(32, ge=1)
    deadline_ms: Annotated[float, Key("longest time for an answer; a client may ask for less")] = Field(10_000.0, gt=0)
    max_message_mb: Annotated[float, Key("largest message in MiB")] = Field(16.0, gt=0, le=1024)
    handshake_s: Annotated[float, Key("longest time for opening a session")] = Field(10.0, gt=0)
    read_s: Annotated[float, Key("longest time for one message to arrive")] = Field(10.0, gt=0)
    idle_s: Annotated[float, Key("longest time between two messages")] = Field(1800.0, gt=0)
    ping_s: Annotated[float, Key("how often the connection is tried; the answer may take as long")] = Field(20.0, gt=0)
    grace_s: Annotated[float, Key("for requests in flight, at SIGTERM or Ctrl-C")] = Field(10.0, ge=0)
    roboarena: Annotated[
        bool, Key("metadata for RoboArena's client, which refuses keys that it does not know", "true")
    ] = False
    roboarena_arrays: Annotated[
        bool, Key("answers of its form before February 2026, whose requests are the same: the bare array", "true")
    ] = False

    @model_validator(mode="after")
    def _a_door_with_a_lock(self) -> ServerSettings:
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file: give one of them")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key: give both, or none")
        token = self.secret
        if token is not None and (len(token) < _SHORTEST_TOKEN or not token.isprintable()):
            raise ValueError(f"token: wants at least {_SHORTEST_TOKEN} printable characters")
        if token is None and not self.insecure and not is_loopback(self.host):
            raise ValueError(
                f"host={self.host}: others could command the robot; add token_file=FILE, or insecure=true to allow it"
            )
        return self

    @property
    def secret(self) -> str | None:
        """The token, from wherever it is.

        Raises:
            ConfigError: Its file cannot be read.
        """
        if self.token_file is not None:
            return _read_token(self.token_file.expanduser())
        return self.token or os.environ.get("RLSPEC_TOKEN") or None

    @property
    def wire_limits(self) -> WireLimits:
        """For messages of clients."""
        return WireLimits(max_bytes=int(self.max_message_mb * 2**20))

    @property
    def scheme(self) -> str:
        """Of the server's address."""
        return "wss" if self.tls_cert else "ws"


class ServedPolicy(Section):
    """Which policy is served, and what its actions mean where it does not say so itself."""

    checkpoint: Annotated[
        str | None,
        Key("a run directory (its newest checkpoint), a checkpoint in one, a LeRobot policy (folder, hub id)", "WHAT"),
    ] = None
    policy: Annotated[
        str | None,
        Key(
            "no model: hold: the present joints; zeros: all numbers zero; replay:FILE: recorded actions (.npy, .npz "
            "with `actions`, .jsonl tick log), to try a robot's side",
            "hold|zeros|replay:FILE",
        ),
    ] = None
    action_space: Annotated[
        str | None,
        one_of(lambda: ACTION_SPACES),
        Key(
            ", ".join(ACTION_SPACES),
            "NAME",
            group=f"what the actions mean (where the checkpoint does not say it; {POLICY_RECORD} in it does)",
        ),
    ] = None
    control_hz: Annotated[float | None, Key("actions per second", "N")] = Field(None, gt=0, le=MAX_HZ)
    execution_law: Annotated[str | None, one_of(lambda: EXECUTION_LAWS), Key(", ".join(EXECUTION_LAWS), "NAME")] = None
    n_action_steps: Annotated[int | None, Key("how many actions of an answer are meant to be carried out")] = Field(
        None, ge=1, le=1000
    )
    wire_keys: Annotated[
        dict[str, str],
        Key("key of messages for a camera of the policy, for example camera.front=observation/image", "NAME=KEY"),
    ] = {}
    prompt: Annotated[str | None, Key("instruction for requests that have none")] = None
    device: Annotated[Literal["auto", "cpu", "cuda"], Key("of a checkpoint")] = "auto"
    threads: Annotated[int | None, Key("CPU threads of a large policy (default: all)")] = Field(None, ge=1, le=4096)
    horizon: Annotated[
        int | None, Key("actions in an answer (default: the checkpoint's, else 16; openpi's DROID client wants 10)")
    ] = Field(None, ge=1, le=MAX_HORIZON)

    @model_validator(mode="after")
    def _one_policy(self) -> ServedPolicy:
        if (self.checkpoint is None) == (self.policy is None):
            raise ValueError("checkpoint: required, or policy=hold|zeros|replay:FILE instead of it")
        return self


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token_file={path}: cannot be read: {error}") from error
    if not token:
        raise ConfigError(f"token_file={path}: is empty")
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context(settings: ServerSettings) -> ssl.SSLContext | None:
    """TLS by the files; None without.

    Raises:
        ConfigError: They cannot be read, or do not belong together.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name, path in (("tls_cert", settings.tls_cert), ("tls_key", settings.tls_key)):
        if not path.is_file():
            raise ConfigError(f"{name}={path}: no such file")
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"tls_cert={settings.tls_cert}, tls_key={settings.tls_key}: {reason}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a password")
