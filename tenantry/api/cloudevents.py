"""CloudEvents over HTTP: which calls carry them, and which messages they become.

In structured mode the event is the body; in binary mode the body is its data, and headers have the
attributes. So topic and key are parameters of the call. (The HTTP binding, version 1.0.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

import orjson
from starlette.requests import Request

from tenantry.api.schemas.common import MAX_LIST
from tenantry.exact import elements
from tenantry.http.problems import Problem, invalid
from tenantry.messages import cloudevents, validation
from tenantry.messages.cloudevents import Attributes, InvalidEventError

PREFIX: Final = b"ce-"
"""The prefix of an attribute's name in the headers of a request."""

LONGEST_KEY: Final = 1024
LONGEST_TYPE: Final = 255
"""Bytes of a content type, as AMQP takes it."""

NO_DATA: Final = "application/octet-stream"
"""The content type of an event without data, and without a type of its own."""

_MARKS: Final = frozenset(PREFIX + name.encode() for name in cloudevents.REQUIRED)
_PARAMETERS: Final = ("topic", "key")
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)


class EventMessage(NamedTuple):
    """The message made of an event; in binary mode the attributes are `headers`."""

    id: str
    key: str | None
    body: bytes
    content_type: str | None
    headers: Mapping[str, object] | None


class Called(NamedTuple):
    """Where a call sends its events; None for a parameter it leaves out."""

    topic: str | None
    key: str | None


def has_events(request: Request) -> bool:
    """Tell whether a call carries CloudEvents, valid or not."""
    kind = request.headers.get("content-type", "")
    if cloudevents.media_type(kind).startswith(cloudevents.MEDIA_TYPE):
        return True
    return any(name in _MARKS for name, _ in request.scope["headers"])


def called(request: Request) -> Called:
    """Read the parameters. Raises `Problem`."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name not in _PARAMETERS:
            raise invalid([(name[:80], "there is no such parameter")])
        if name in given:
            raise invalid([(name, "is given twice")])
        given[name] = value
    key = given.get("key")
    if key is not None and len(key) > LONGEST_KEY:
        raise invalid([("key", f"must have {LONGEST_KEY} characters at most")])
    return Called(given.get("topic"), key)


def events_of(request: Request, body: bytes) -> list[EventMessage]:
    """Read the events of a call that carries some. Many take a while. Raises `Problem`."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise Problem(415, "events are taken as they are, without a Content-Encoding")
    content_type = request.headers.get("content-type")
    kind = "" if content_type is None else cloudevents.media_type(content_type)
    if content_type is not None and len(content_type.encode()) > LONGEST_TYPE:
        raise invalid([("Content-Type", f"must have {LONGEST_TYPE} bytes at most")])
    match kind:
        case cloudevents.STRUCTURED:
            return [_structured(_read(body), body, content_type or kind, "")]
        case cloudevents.BATCH:
            return _batch(body)
        case _ if kind.startswith(cloudevents.MEDIA_TYPE):
            raise Problem(
                415,
                f"of structured events {cloudevents.STRUCTURED} and {cloudevents.BATCH} are "
                "understood; send one of them, or the attributes as headers (binary mode)",
            )
        case _:
            return [_binary(request, body, content_type)]


def said_by(request: Request, body: bytes) -> bytes:
    """Return all bytes that two equal calls share: in binary mode the body alone is not enough."""
    named = sorted(one for one in request.scope["headers"] if one[0].startswith(PREFIX))
    said = [request.scope["query_string"], request.headers.get("content-type", "").encode()]
    return b"\n".join([*said, *(b"%b: %b" % one for one in named), body])


def _read(body: bytes) -> object:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Problem(
            400, f"the body is not JSON: {error}", code="bad-json", title="Not JSON"
        ) from None


def _batch(body: bytes) -> list[EventMessage]:
    read = _read(body)
    if not isinstance(read, list):
        raise invalid([("", "a batch is a JSON array of events")])
    if len(read) > MAX_LIST:
        raise invalid([("", f"a batch has {MAX_LIST} events at most")])
    try:
        texts = elements(body)
    except json.JSONDecodeError as error:
        raise Problem(400, str(error), code="bad-json", title="Not JSON") from None
    return [
        _structured(one, text, cloudevents.STRUCTURED, f"[{number}]")
        for number, (one, text) in enumerate(zip(read, texts, strict=True))
    ]


def _structured(document: object, text: bytes, content_type: str, place: str) -> EventMessage:
    try:
        attributes = cloudevents.of_object(document)
    except InvalidEventError as error:
        raise _invalid(error, place) from None
    if attributes is None:
        raise _invalid(_other_version(), place)
    return EventMessage(
        cloudevents.message_id(attributes), _key(attributes, place), text, content_type, None
    )


def _binary(request: Request, body: bytes, content_type: str | None) -> EventMessage:
    try:
        given = _named(request)
        if content_type is not None:
            given["datacontenttype"] = content_type
        attributes = cloudevents.check(given)
    except InvalidEventError as error:
        raise _invalid(error, "") from None
    if validation.is_json(content_type):
        if not body and content_type is None:
            content_type = NO_DATA
        else:
            _read(body)
    return EventMessage(
        cloudevents.message_id(attributes),
        _key(attributes, ""),
        body,
        content_type,
        cloudevents.as_headers(attributes),
    )


def _named(request: Request) -> dict[str, object]:
    """Read the attributes that are headers."""
    found: dict[str, object] = {}
    for raw, value in request.scope["headers"]:
        if raw.startswith(PREFIX):
            name = raw[len(PREFIX) :].decode("latin-1")
            if name == "datacontenttype":
                raise InvalidEventError(name, "is Content-Type in binary mode")
            if name in found:
                raise InvalidEventError(name, "is given twice")
            found[name] = _decoded(name, value)
    return found


def _decoded(name: str, value: bytes) -> str:
    """Read a header's value: strip the quotes of a quoted text, then percent-decode it once."""
    try:
        text = value.decode("ascii").strip()
        if len(text) > 1 and text.startswith('"') and text.endswith('"'):
            text = _ESCAPED.sub(r"\1", text[1:-1])
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        raise InvalidEventError(
            name, "what is not ASCII is written as UTF-8 in per cent and digits"
        ) from None


def _key(attributes: Attributes, place: str) -> str | None:
    """Return the event's extension `partitionkey`, if it has one. Raises `Problem`."""
    key = attributes.get("partitionkey")
    if key is None:
        return None
    if not isinstance(key, str) or not 0 < len(key) <= LONGEST_KEY:
        problem = f"must be text of 1 to {LONGEST_KEY} characters"
        raise _invalid(InvalidEventError("partitionkey", problem), place)
    return key


def _other_version() -> InvalidEventError:
    return InvalidEventError("specversion", f"must be {cloudevents.SPECVERSION}")


def _invalid(error: InvalidEventError, place: str) -> Problem:
    joined = f"{place}.{error.attribute}" if place and error.attribute else place + error.attribute
    field = "".join(one if one.isprintable() else "?" for one in joined)
    return invalid([(field, error.problem)])
