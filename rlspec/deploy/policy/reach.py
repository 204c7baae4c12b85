"""Why a policy server cannot be reached, and what to do about it."""

from __future__ import annotations

import http.client
import ssl

START_PATIENCE = 180.0
"""Seconds for an answer before the start: first ones compile and fill caches."""

_NOT_THIS_NAME = frozenset({62, 64})  # X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH


def remedy_of(url: str, error: BaseException) -> str:
    """What to do.

    Args:
        url: ws://HOST:PORT or wss://HOST:PORT.
        error: With which no connection came about.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _NOT_THIS_NAME:
            return "write its host as its certificate does"
        return "let SSL_CERT_FILE name the certificate of the CA that signed its own"
    if isinstance(error, ssl.SSLError) and url.startswith("wss:"):
        return "if it serves without TLS, write ws://"
    if not url.startswith("wss:") and any(
        isinstance(each, http.client.RemoteDisconnected | EOFError) for each in (error, error.__cause__)
    ):
        return "if it serves by TLS, write wss://"
    return "is `python -m rlspec.serve` up?"
