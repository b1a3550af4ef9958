"""A provider of identities for tests: keys, what it shows of them over HTTP, tokens."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from tests.waiting import DEADLINE

ISSUER = "https://login.test/realms/one"
AUDIENCE = "tenantry"

LOOKS_BROKEN_OFF = [
    pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning"),
    pytest.mark.filterwarnings(r"ignore:unclosed <socket.socket fd=\d+, family=2:ResourceWarning"),
]
"""Marks of tests in which a look for keys may be broken off: anyio loses a connection that is made
in the moment in which it is told to give up; Python closes it then, and says so."""


@cache
def rsa_key(name: str = "", bits: int = 2048) -> rsa.RSAPrivateKey:
    """A key that is made once: that takes a while."""
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


class Signer:
    """A private key with a name, and what the provider shows of it."""

    def __init__(self, kid: str | None, algorithm: str = "ES256", key: Any = None) -> None:
        made: dict[str, Callable[[], Any]] = {
            "ES256": lambda: ec.generate_private_key(ec.SECP256R1()),
            "RS256": rsa_key,
            "EdDSA": ed25519.Ed25519PrivateKey.generate,
        }
        self.kid = kid
        self.algorithm = algorithm
        self.key = made[algorithm]() if key is None else key

    def shown(self, **more: Any) -> dict[str, Any]:
        """Its public part as JSON, with other members put in; None takes one out."""
        written = _algorithm(self.key).to_jwk(self.key.public_key(), as_dict=True)
        written.pop("key_ops", None)
        full = written | {"kid": self.kid, "use": "sig", "alg": self.algorithm} | more
        return {name: value for name, value in full.items() if value is not None}

    def token(self, *, algorithm: str | None = None, headers: Any = None, **claims: Any) -> str:
        """A token of the provider's for an admin, with other claims put in; None takes one out."""
        now = datetime.now(UTC)
        full = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "scope": "admin",
            "iat": int(now.timestamp()), "exp": now + timedelta(hours=1),
        } | claims  # fmt: skip
        given = {name: value for name, value in full.items() if value is not None}
        named = {"kid": self.kid} if self.kid is not None and headers is None else headers
        return jwt.encode(given, self.key, algorithm or self.algorithm, headers=named)


def _algorithm(key: Any) -> Any:
    if isinstance(key, rsa.RSAPrivateKey):
        return jwt.algorithms.RSAAlgorithm
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return jwt.algorithms.ECAlgorithm
    return jwt.algorithms.OKPAlgorithm


def document(*signers: Signer) -> bytes:
    return json.dumps({"keys": [one.shown() for one in signers]}).encode()


class KeyServer:
    """Serves a document on 127.0.0.1; `answer` may be put in its place, and `asked` counts."""

    def __init__(self, *signers: Signer) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler], None] = self.show
        self.asked = 0
        self.url = ""
        self.show_keys(*signers)

    def show_keys(self, *signers: Signer) -> None:
        self.document = document(*signers)

    def show(self, request: BaseHTTPRequestHandler) -> None:
        self.send(request, self.document)

    @staticmethod
    def send(
        request: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str
    ) -> None:
        request.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)


@contextmanager
def key_server(*signers: Signer, tls: ssl.SSLContext | None = None) -> Iterator[KeyServer]:
    with serving(KeyServer(*signers), tls) as served:
        yield served


K = TypeVar("K", bound=KeyServer)


@contextmanager
def serving(served: K, tls: ssl.SSLContext | None = None) -> Iterator[K]:

    class Handler(BaseHTTPRequestHandler):
        timeout = DEADLINE

        def do_GET(self) -> None:
            served.asked += 1
            with suppress(OSError):
                served.answer(self)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """Whoever breaks off has a reason."""

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        # Each shakes hands on its handler's thread: who keeps silent keeps nobody else waiting.
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    scheme = "http" if tls is None else "https"
    served.url = f"{scheme}://127.0.0.1:{server.server_address[1]}/keys"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="key-server")
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
