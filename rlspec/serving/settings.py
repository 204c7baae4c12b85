"""Settings of a server, and which of them do not go together."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from rlspec.contract.wire import WireLimits
from rlspec.errors import ConfigError


@dataclass(frozen=True)
class ServerSettings:
    """How a policy is served.

    Attributes:
        host, port: Where; port 0: a free one.
        token: Clients must show it in the header Authorization.
        tls_cert, tls_key: Files (PEM); both or none.
        insecure: Allow an address that others can reach without a token.
        roboarena: Metadata with RoboArena's keys only, except to rlspec's own client.
        max_sessions: Robots at a time.
        max_batch: Requests that are answered at once.
        batch_window_ms: Longest wait for other sessions' requests.
        max_queue: Requests that may wait.
        deadline_ms: Longest time for an answer; a client may ask for less.
        max_message_mb: Largest message in MiB.
        handshake_s, read_s, idle_s: Longest time for opening a session, for one message to arrive, and between two.
        ping_s: How often the connection is tried; the answer may take as long.
        grace_s: Wait for requests in flight at the end.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    insecure: bool = False
    roboarena: bool = False
    max_sessions: int = 16
    max_batch: int = 8
    batch_window_ms: float = 2.0
    max_queue: int = 32
    deadline_ms: float = 10_000.0
    max_message_mb: float = 16.0
    handshake_s: float = 10.0
    read_s: float = 10.0
    idle_s: float = 1800.0
    ping_s: float = 20.0
    grace_s: float = 10.0

    @property
    def wire_limits(self) -> WireLimits:
        """For messages of clients."""
        return WireLimits(max_bytes=int(self.max_message_mb * 2**20))

    @property
    def scheme(self) -> str:
        """Of the server's address."""
        return "wss" if self.tls_cert else "ws"


_POSITIVE = (
    *("max_sessions", "max_batch", "max_queue", "deadline_ms", "max_message_mb"),
    *("handshake_s", "read_s", "idle_s", "ping_s"),
)
_NOT_NEGATIVE = ("batch_window_ms", "grace_s")
_SHORTEST_TOKEN = 8


def check_settings(settings: ServerSettings) -> None:
    """Refuse what cannot work or should not.

    Raises:
        ConfigError: A number out of its range, an open door, half of a TLS pair.
    """
    for name in (*_POSITIVE, *_NOT_NEGATIVE):
        value = getattr(settings, name)
        if value < 0 or (value == 0 and name in _POSITIVE) or value != value or value == float("inf"):
            raise ConfigError(f"{name}={value:g}: wants a number above zero")
    if not 0 <= settings.port <= 65535:
        raise ConfigError(f"port={settings.port}: wants 0 to 65535; 0 takes a free one")
    if settings.max_message_mb > 1024:
        raise ConfigError(f"max_message_mb={settings.max_message_mb:g}: wants at most 1024")
    if settings.token is not None and (len(settings.token) < _SHORTEST_TOKEN or not settings.token.isprintable()):
        raise ConfigError(f"token: wants at least {_SHORTEST_TOKEN} printable characters")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError("tls_cert and tls_key: give both, or none")
    if settings.token is None and not settings.insecure and not is_loopback(settings.host):
        raise ConfigError(
            f"host={settings.host}: others could command the robot; add token_file=FILE, or insecure=true to allow it"
        )


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
        if not Path(path).is_file():
            raise ConfigError(f"{name}={path}: no such file")
    try:
        context.load_cert_chain(settings.tls_cert, settings.tls_key, password=_no_password)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"tls_cert={settings.tls_cert}, tls_key={settings.tls_key}: {reason}") from error
    return context


def _no_password() -> str:
    raise ValueError("the key is encrypted; give one without a password")
