"""How pages are written: templates, numbers and times for people, headers, static files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import orjson
from starlette.responses import Response

from tenantry import exact
from tenantry.http.problems import Problem

if TYPE_CHECKING:
    from jinja2 import Environment

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    # Not `no-referrer`: with that, browsers do not say where a form came from.
    "Referrer-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
LONGEST_TEXT: Final = 300
"""Characters shown of a text that a client has chosen."""

_ESCAPED: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"}
_BYTES_A_CHARACTER: Final = 2

UNKNOWN: Final = "—"

_FILES: Final = {
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
_FOR_GOOD: Final = "public, max-age=31536000, immutable"


def html(
    template: str,
    path: str,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    /,  # `shown` may use these names as well
    **shown: Any,
) -> Response:
    """Write a page; its links are relative to `path`, the request's."""
    text = _environment().get_template(template).render(root=root_of(path), **shown)
    return Response(
        text, status_code=status, media_type="text/html", headers={**HEADERS, **(headers or {})}
    )


def json(shown: Mapping[str, str]) -> Response:
    """Write texts by name, as JSON."""
    return Response(orjson.dumps(shown), media_type="application/json", headers=HEADERS)


def see_other(path: str, to: str, headers: Mapping[str, str] | None = None) -> Response:
    """Redirect from a form to another page; `to` is relative to the root of the API."""
    given = {**HEADERS, **(headers or {}), "Location": f"{root_of(path)}{to}"}
    return Response(status_code=303, headers=given)


def elsewhere(url: str, headers: Mapping[str, str] | None = None) -> Response:
    """Redirect to another site, which is not told the page that led there."""
    given = {**HEADERS, "Referrer-Policy": "no-referrer", **(headers or {}), "Location": url}
    return Response(status_code=303, headers=given)


def root_of(path: str) -> str:
    """Return the relative path from a page to the API's root, which a proxy may put anywhere."""
    return "../" * (path.count("/") - 1) or "./"


def file(name: str) -> Response:
    """Return a static file, by its name with its digest in it. Raises `Problem`, a 404."""
    stem, _, rest = name.partition(".")
    _, _, ending = rest.partition(".")
    plain = f"{stem}.{ending}"
    if plain not in _FILES or name != named(plain):
        raise Problem(404, "nothing is served under this path")
    headers = {**HEADERS, "Cache-Control": _FOR_GOOD}
    return Response(_content(plain), media_type=_FILES[plain], headers=headers)


@cache
def named(plain: str) -> str:
    """Return a file's name with its digest: what is served under one name never changes."""
    stem, _, ending = plain.partition(".")
    return f"{stem}.{hashlib.sha256(_content(plain)).hexdigest()[:16]}.{ending}"


@cache
def _content(plain: str) -> bytes:
    return (resources.files(__package__) / "static" / plain).read_bytes()


@cache
def _environment() -> Environment:
    # Loaded for the first page that is written, so that a daemon starts without it.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, rate=rate, moment=moment, clipped=clipped, tojson_text=_json
    )
    environment.globals.update(file=named)
    return environment


def _json(value: object) -> str:
    return exact.dumps(value, indent=2)


def number(value: float | None) -> str:
    """Write a number exactly, its digits in groups of three."""
    return UNKNOWN if value is None else f"{value:,}"


def rate(value: float | None) -> str:
    """Write a number per second."""
    return UNKNOWN if value is None else f"{value:,.1f}"


def moment(written: str | None) -> str:
    """Write a time to the second, in UTC."""
    if written is None:
        return UNKNOWN
    return f"{datetime.fromisoformat(written):%Y-%m-%d %H:%M:%S} UTC"


def clipped(text: object, most: int = LONGEST_TEXT) -> str:
    """Write the beginning of a text; if it is cut, its whole length follows.

    It has `most` characters, fewer where those would take more than twice as many bytes: escaping
    must not make a page full of quotes five times as large as another.
    """
    whole = str(text)
    shown = _within(whole[:most], _BYTES_A_CHARACTER * most)
    return whole if len(shown) == len(whole) else f"{shown}… ({len(whole):,} characters)"


def size(text: str) -> int:
    """Count the bytes that a text takes on a page, escaped."""
    escaped = sum(text.count(one) * (len(more) - 1) for one, more in _ESCAPED.items())
    return len(text.encode(errors="replace")) + escaped


def _within(text: str, most: int) -> str:
    """Return as much of a text's beginning as takes at most `most` bytes on a page."""
    if size(text) <= most:
        return text
    for place, one in enumerate(text):
        most -= size(one)
        if most < 0:
            return text[:place]
    return text
