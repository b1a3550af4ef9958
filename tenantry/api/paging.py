"""Where a page ends and the next one begins: sealed cursors, and the `Link` header (RFC 8288).

No client can read a cursor or make one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode

from starlette.requests import Request

_TAG: Final = 16
_MAX_TOKEN: Final = 512
_POSITION_BYTES: Final = 8
_INCARNATION_BYTES: Final = 4


class BadCursorError(Exception):
    """The cursor was not given out for this list."""

    def __init__(self) -> None:
        super().__init__("the cursor is not one that this list gave out; begin without a cursor")


class FormerCursorError(BadCursorError):
    """The cursor was given out for a former tenant of the id."""

    def __init__(self) -> None:
        Exception.__init__(
            self,
            "the cursor is a former tenant's, whose id another one has by now; begin without one",
        )


class Cursors:
    """Seals and opens cursors with a secret key.

    A cursor opens only with the `binding` it was sealed with: the list it belongs to and
    everything that decides which rows it holds and in which order.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) < _TAG:
            raise ValueError(f"the cursor key must have {_TAG} bytes at least")
        self._key = key

    def seal(self, value: bytes, *binding: str) -> str:
        """Give the cursor that holds `value`."""
        return base64.urlsafe_b64encode(self._tag(value, binding) + value).rstrip(b"=").decode()

    def open(self, token: str, *binding: str) -> bytes:
        """Give the value a cursor holds, or raise `BadCursorError`."""
        # The URL-safe alphabet only: the decoder accepts the standard one as well.
        if len(token) > _MAX_TOKEN or not token.isascii() or not {*token}.isdisjoint("+/"):
            raise BadCursorError
        try:
            padded = token + "=" * (-len(token) % 4)
            sealed = base64.b64decode(padded, altchars=b"-_", validate=True)
        except binascii.Error:
            raise BadCursorError from None
        tag, value = sealed[:_TAG], sealed[_TAG:]
        if not hmac.compare_digest(tag, self._tag(value, binding)):
            raise BadCursorError
        return value

    def seal_place(self, position: int, incarnation: int, *binding: str) -> str:
        """Give the cursor of a position of one incarnation of a tenant."""
        place = position.to_bytes(_POSITION_BYTES)
        if incarnation > 1:  # cursors of the first one have the older form
            place += incarnation.to_bytes(_INCARNATION_BYTES)
        return self.seal(place, *binding)

    def open_place(self, token: str, *binding: str) -> tuple[int, int]:
        """Give the position and the incarnation a cursor holds, or raise `BadCursorError`."""
        value = self.open(token, *binding)
        if len(value) not in {_POSITION_BYTES, _POSITION_BYTES + _INCARNATION_BYTES}:
            raise BadCursorError
        position, incarnation = value[:_POSITION_BYTES], value[_POSITION_BYTES:]
        return int.from_bytes(position), int.from_bytes(incarnation) or 1

    def open_place_of(self, incarnation: int, token: str, *binding: str) -> int:
        """Give the position a cursor holds, or raise `FormerCursorError`, `BadCursorError`."""
        position, whose = self.open_place(token, *binding)
        if whose != incarnation:
            raise FormerCursorError
        return position

    def secret(self, *binding: str) -> str:
        """Derive a text of 43 letters from a binding, which can't be guessed without the key."""
        return base64.urlsafe_b64encode(self._mac(b"", binding)).rstrip(b"=").decode()

    def _tag(self, value: bytes, binding: tuple[str, ...]) -> bytes:
        return self._mac(value, binding)[:_TAG]

    def _mac(self, value: bytes, binding: tuple[str, ...]) -> bytes:
        # Every part is preceded by its length, so that no two bindings are encoded alike.
        mac = hmac.new(self._key, digestmod=hashlib.sha256)
        for part in (*(text.encode() for text in binding), value):
            mac.update(len(part).to_bytes(4))
            mac.update(part)
        return mac.digest()


def kept_key(path: Path) -> bytes:
    """Read the key from a file, made on first use, so that cursors outlive a restart.

    Only the file's owner may read it. Raises `OSError`.
    """
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        key = secrets.token_bytes(32)
        fresh = path.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_bytes(key)
        fresh.replace(path)
    return hashlib.sha256(b"cursors" + key).digest()


LINK_HEADER: Final[dict[str, Any]] = {
    "Link": {
        "description": 'The next page, `rel="next"`, where there may be one.',
        "schema": {"type": "string"},
        "example": '</tenants?limit=50&cursor=kZ0x>; rel="next"',
    }
}
"""What the OpenAPI document says of the header."""


def link_header(request: Request, cursor: str | None) -> dict[str, str]:
    """Give the header that links to the next page: the same request with the page's cursor."""
    if cursor is None:
        return {}
    query = [
        (name, value)
        for name, value in parse_qsl(request.url.query, keep_blank_values=True)
        if name != "cursor"
    ]
    query.append(("cursor", cursor))
    # Quoted again, so that nothing in the client's request can break out of the header.
    path = quote(request.scope["path"], safe="/")
    return {"Link": f'<{path}?{urlencode(query)}>; rel="next"'}
