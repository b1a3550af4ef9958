"""A provider of identities where people log in: OpenID Connect by oauthlib, over HTTP.

It holds clients to what the protocol says: the address to come back to, the secret, PKCE, codes
that are good once. Whoever comes is `person`. What it tells and signs may be put in the way.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote_plus, urlencode, urlsplit

from oauthlib.oauth2 import FatalClientError
from oauthlib.openid import RequestValidator, Server

from tests.identity_provider import KeyServer, Signer, serving

CLIENT, SECRET = "tenantry-ui", "a secret: of the client's, 100% odd & long"


@dataclass
class Code:
    """What a code was given out for."""

    redirect_uri: str
    scopes: list[str]
    nonce: str | None
    challenge: str | None
    method: str | None


class LoginProvider(KeyServer, RequestValidator):  # type: ignore[misc]
    """The provider: `told` is put into what it tells of itself, `sign` makes its ID tokens."""

    def __init__(self, signer: Signer) -> None:
        KeyServer.__init__(self, signer)
        RequestValidator.__init__(self)
        self.signer = signer
        self.person: dict[str, Any] = {"sub": "ann", "groups": ["ops"]}
        self.secret: str | None = SECRET
        self.redirect_uris: set[str] = set()
        self.told: dict[str, Any] = {}
        self.declines = False
        self.sign: Callable[[dict[str, Any]], str] = lambda said: self.signer.token(**said)
        self.codes: dict[str, Code] = {}
        self.paths: list[str] = []
        self._server = Server(self)

    @property
    def issuer(self) -> str:
        return self.url.removesuffix("/keys")

    # Over HTTP.

    def show(self, request: BaseHTTPRequestHandler) -> None:
        path = urlsplit(request.path).path
        self.paths.append(path)
        match path:
            case "/keys":
                self.send(request, self.document)
            case "/.well-known/openid-configuration":
                self.send(request, json.dumps(self.configuration()).encode())
            case "/authorize":
                self._authorize(request)
            case "/token":
                self._exchange(request)
            case _:
                self.send(request, b"", 404)

    def configuration(self) -> dict[str, Any]:
        told = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize?realm=one",
            "token_endpoint": f"{self.issuer}/token",
            "end_session_endpoint": f"{self.issuer}/end",
            "jwks_uri": self.url,
            "response_types_supported": ["code"],
            "authorization_response_iss_parameter_supported": True,
        } | self.told
        return {name: value for name, value in told.items() if value is not None}

    def _authorize(self, request: BaseHTTPRequestHandler) -> None:
        try:
            scopes, asked = self._server.validate_authorization_request(self._uri(request))
        except FatalClientError as error:
            self.send(request, error.json.encode(), 400)
            return
        if self.declines:
            back = {"error": "access_denied", "error_description": "no", "state": asked["state"]}
            to = f"{asked['redirect_uri']}?{urlencode({**back, 'iss': self.issuer})}"
        else:
            headers, _, _ = self._server.create_authorization_response(
                self._uri(request), scopes=scopes, credentials=asked
            )
            to = f"{headers['Location']}&{urlencode({'iss': self.issuer})}"
        self.send(request, b"", 302, Location=to)

    def _exchange(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"])).decode()
        headers, answer, status = self._server.create_token_response(
            self._uri(request), "POST", body, dict(request.headers)
        )
        self.send(request, answer.encode(), status, **headers)

    def _uri(self, request: BaseHTTPRequestHandler) -> str:
        return f"{self.issuer}{request.path}"

    def _of(self, code: str) -> Code:
        """What a code was given out for; nothing, if it was not."""
        return self.codes.get(code, Code("", [], None, None, None))

    # What oauthlib asks.

    def validate_client_id(self, client_id: str, request: Any, *_: Any, **__: Any) -> bool:
        return client_id == CLIENT

    def validate_redirect_uri(
        self, client_id: str, redirect_uri: str, request: Any, *_: Any, **__: Any
    ) -> bool:
        return redirect_uri in self.redirect_uris

    def validate_response_type(
        self, client_id: str, response_type: str, *_: Any, **__: Any
    ) -> bool:
        return response_type == "code"

    def validate_scopes(self, client_id: str, scopes: list[str], *_: Any, **__: Any) -> bool:
        return set(scopes) <= {"openid", "groups"}

    def validate_user_match(self, *_: Any, **__: Any) -> bool:
        return True

    def is_pkce_required(self, client_id: str, request: Any) -> bool:
        return True

    def save_authorization_code(
        self, client_id: str, code: dict[str, str], request: Any, *_: Any, **__: Any
    ) -> None:
        self.codes[code["code"]] = Code(
            request.redirect_uri, request.scopes, request.nonce,
            request.code_challenge, request.code_challenge_method,
        )  # fmt: skip

    def client_authentication_required(self, request: Any, *_: Any, **__: Any) -> bool:
        return self.secret is not None

    def authenticate_client(self, request: Any, *_: Any, **__: Any) -> bool:
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        client_id, secret = request.client_id, request.client_secret
        if kind == "Basic":
            client_id, _, secret = base64.b64decode(given).decode().partition(":")
            client_id, secret = unquote_plus(client_id), unquote_plus(secret)
        request.client = SimpleNamespace(client_id=client_id)
        return (client_id, secret) == (CLIENT, self.secret)

    def authenticate_client_id(self, client_id: str, request: Any, *_: Any, **__: Any) -> bool:
        request.client = SimpleNamespace(client_id=client_id)
        return client_id == CLIENT

    def validate_grant_type(self, client_id: str, grant_type: str, *_: Any, **__: Any) -> bool:
        return grant_type == "authorization_code"

    def validate_code(
        self, client_id: str, code: str, client: Any, request: Any, *_: Any, **__: Any
    ) -> bool:
        found = self.codes.get(code)
        request.scopes = [] if found is None else found.scopes
        request.user = "whoever"
        return found is not None

    def confirm_redirect_uri(
        self, client_id: str, code: str, redirect_uri: str, *_: Any, **__: Any
    ) -> bool:
        return self._of(code).redirect_uri == redirect_uri

    def get_code_challenge(self, code: str, request: Any) -> str | None:
        return self._of(code).challenge

    def get_code_challenge_method(self, code: str, request: Any) -> str | None:
        return self._of(code).method

    def get_authorization_code_nonce(self, client_id: str, code: str, *_: Any) -> str | None:
        return self._of(code).nonce

    def get_authorization_code_scopes(self, client_id: str, code: str, *_: Any) -> list[str]:
        return self._of(code).scopes

    def save_bearer_token(self, token: Any, request: Any, *_: Any, **__: Any) -> None:
        pass

    def invalidate_authorization_code(self, client_id: str, code: str, *_: Any, **__: Any) -> None:
        del self.codes[code]

    def finalize_id_token(self, id_token: dict[str, Any], *_: Any) -> str:
        now = datetime.now(UTC)
        person = {"iss": self.issuer, "exp": now + timedelta(hours=1), "scope": None, **self.person}
        return self.sign({**id_token, **person})


@contextmanager
def login_provider() -> Iterator[LoginProvider]:
    with serving(LoginProvider(Signer("one"))) as served:
        yield served
