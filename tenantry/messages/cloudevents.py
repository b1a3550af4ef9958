"""CloudEvents 1.0: what a message says of itself that is one, and the id it is known by.

A body stays what it is. In binary mode the attributes are headers of the message, as the binding
for AMQP names them; in structured mode they are in its body, and put beside it as the same headers,
so that whoever reads finds them in one place.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final, TypeAlias

import orjson

from tenantry.messages.headers import CONTENT_ENCODING, MOST_BYTES, REPLAY_HEADER, JsonHeaders
from tenantry.messages.port import Incoming

SPECVERSION: Final = "1.0"
REQUIRED: Final = ("specversion", "id", "source", "type")

PREFIX: Final = "cloudEvents:"
"""Before an attribute's name, among headers."""

PREFIXES: Final = (PREFIX, "cloudEvents_")
"""The binding has two: a colon is not for every client."""

MEDIA_TYPE: Final = "application/cloudevents"
"""How the content types of all formats begin."""

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"

LONGEST_ID: Final = 255
"""Bytes of a message's id, as AMQP takes it."""

LONGEST_NAME: Final = 128
"""Characters of an attribute's name; by the specification it should have 20 at most."""

Value: TypeAlias = str | int | bool | bytes | datetime
Attributes: TypeAlias = Mapping[str, Value]

_NAME: Final = re.compile(r"[a-z0-9]+", re.ASCII)
_NONCHARACTERS: Final = "".join(
    chr(plane << 16 | end) for plane in range(17) for end in (65534, 65535)
)
_FORBIDDEN: Final = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NONCHARACTERS}]")
# Beyond ASCII by the rules for IRIs; what is there of spaces is none of them.
_URI_CHARACTERS: Final = r"""[^\x00-\x20"<>\\^`{|}%\x7f-\xa0\s]"""
_URI_REFERENCE: Final = re.compile(
    rf"{_URI_CHARACTERS}*+(?:%[0-9A-Fa-f]{{2}}{_URI_CHARACTERS}*+)*+"
)
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*:")
_TOKEN: Final = r"[!#$%&'*+.^_`|~0-9A-Za-z\-]+"  # noqa: S105 - of a media type
_MEDIA_TYPE: Final = re.compile(rf"{_TOKEN}/{_TOKEN}\s*(?:;.*)?", re.DOTALL)
_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\dT\d\d:\d\d:)(\d\d)(?:\.\d+)?(Z|[+\-](?:[01]\d|2[0-3]):[0-5]\d)", re.ASCII
)
_INTEGERS: Final = range(-(2**31), 2**31)


class InvalidEventError(ValueError):
    """What says that it is a CloudEvent, and is none: which attribute, and what is wrong."""

    def __init__(self, attribute: str, problem: str) -> None:
        super().__init__(f"{attribute}: {problem}" if attribute else problem)
        self.attribute = attribute
        self.problem = problem


def media_type(content_type: str) -> str:
    """Give a content type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def understood(message: Incoming) -> Incoming:
    """Give a message as it is stored: a CloudEvent has an id, and its attributes as headers.

    What is no CloudEvent is given back as it is, and so is one of a version or a format that is not
    known here. Raises `InvalidEventError`.
    """
    headers = message.headers
    if message.content_type is not None and (kind := media_type(message.content_type)).startswith(
        MEDIA_TYPE
    ):
        if kind != STRUCTURED or _is_encoded(headers):
            return message
        attributes = of_document(message.body)
        if attributes is None:
            return message
        headers = _beside(headers, attributes)
    elif (attributes := of_headers(headers or {})) is None:
        return message
    # One that had no id before it was replayed has its dead letter's since.
    has_its_own = message.id is not None and message.id != (headers or {}).get(REPLAY_HEADER)
    return message._replace(
        id=message.id if has_its_own else message_id(attributes), headers=headers
    )


def of_headers(headers: Mapping[str, object]) -> Attributes | None:
    """Read the attributes that are among a message's headers.

    None where not all are there that every CloudEvent has, or the version is another: then these
    are headers like any others. Raises `InvalidEventError`.
    """
    attributes = named_in(headers)
    if attributes.get("specversion") != SPECVERSION or not attributes.keys() >= {*REQUIRED}:
        return None
    return check(attributes)


def named_in(headers: Mapping[str, object]) -> dict[str, object]:
    """Give what headers name as attributes, unchecked; null is none."""
    found: dict[str, object] = {}
    for name, value in headers.items():
        if value is not None and name.startswith(PREFIXES):
            found[name[len(PREFIX) :]] = value
    return found


def of_document(body: bytes) -> Attributes | None:
    """Read the attributes of an event in JSON; None where its version is another.

    Raises `InvalidEventError`.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidEventError("", f"the event is not JSON: {error}") from None
    return of_object(document)


def of_object(document: object) -> Attributes | None:
    """Read the attributes of an event that was read as JSON. As `of_document`."""
    if not isinstance(document, dict):
        raise InvalidEventError("", "an event is a JSON object")
    attributes = {name: value for name, value in document.items() if value is not None}
    has_data = document.keys() & {"data"}
    attributes.pop("data", None)
    encoded = attributes.pop("data_base64", None)
    version = attributes.get("specversion")
    if isinstance(version, str) and version and version != SPECVERSION:
        return None
    if encoded is not None:
        if has_data:
            raise InvalidEventError("data_base64", "is there beside data; an event has one of them")
        _check_base64(encoded)
    return check(attributes)


def told(headers: Mapping[str, object], content_type: str | None) -> dict[str, object] | None:
    """Give the attributes of a stored message by their names; None where it is no CloudEvent."""
    attributes = named_in(headers)
    if attributes.get("specversion") != SPECVERSION or not attributes.keys() >= {*REQUIRED}:
        return None
    if content_type is not None and not content_type.lower().startswith(MEDIA_TYPE):
        attributes["datacontenttype"] = content_type
    return attributes


def check(attributes: Mapping[str, object]) -> Attributes:
    """Give attributes back that are those of a CloudEvent. Raises `InvalidEventError`."""
    for name in REQUIRED:
        if name not in attributes:
            raise InvalidEventError(name, "is required")
    if attributes["specversion"] != SPECVERSION:
        raise InvalidEventError("specversion", f"must be {SPECVERSION}, which is all that is known")
    left = MOST_BYTES
    checked: dict[str, Value] = {}
    for name, value in attributes.items():
        # First of all: nothing looks through megabytes, or at a million of them.
        left -= len(name) + _bytes(value)
        if left < 0:
            raise InvalidEventError("", f"its attributes have more than {MOST_BYTES} bytes")
        checked[name] = _checked(name, value)
    return checked


def message_id(attributes: Mapping[str, object]) -> str:
    """Give the id of the message that an event is: its source and its id, with a space between.

    No source has a space, so no two events share one. Where that is longer than AMQP takes, it is
    `sha256:` and the digest of it.
    """
    both = f"{attributes['source']} {attributes['id']}"
    data = both.encode()
    return both if len(data) <= LONGEST_ID else f"sha256:{hashlib.sha256(data).hexdigest()}"


def as_headers(attributes: Attributes) -> dict[str, object]:
    """Give attributes as headers; a content type is the message's own."""
    return {
        f"{PREFIX}{name}": value for name, value in attributes.items() if name != "datacontenttype"
    }


def _beside(headers: Mapping[str, object] | None, attributes: Attributes) -> Mapping[str, object]:
    """Put the attributes of a body beside it; what its sender has put there stays."""
    told = named_in(headers or {})
    added = {f"{PREFIX}{name}": one for name, one in attributes.items() if name not in told}
    if isinstance(headers, JsonHeaders):
        return headers.with_others(added)
    return {**(headers or {}), **added}


def _checked(name: str, value: object) -> Value:
    if name == "data" or not _NAME.fullmatch(name) or len(name) > LONGEST_NAME:
        raise InvalidEventError(name[:LONGEST_NAME], "is no name of an attribute: a-z and 0-9")
    if isinstance(value, str):
        _check_text(name, value)
        return value
    if name in _TEXTS and not (name == "time" and isinstance(value, datetime)):
        raise InvalidEventError(name, "must be text")
    if isinstance(value, bool | bytes | datetime) or (
        isinstance(value, int) and value in _INTEGERS
    ):
        return value
    raise InvalidEventError(name, "must be text, true or false, or a whole number of 32 bits")


def _bytes(value: object) -> int:
    if isinstance(value, str) and not value.isascii():
        return len(value.encode(errors="surrogatepass"))
    return len(value) if isinstance(value, str | bytes) else 8


def _check_text(name: str, value: str) -> None:
    if _FORBIDDEN.search(value):
        raise InvalidEventError(name, "has a control character, or one that is none")
    if name not in _TEXTS:
        return
    if not value:
        raise InvalidEventError(name, "must not be empty")
    is_well = _TEXTS[name]
    if is_well is not None and not is_well.fullmatch(value):
        raise InvalidEventError(name, f"is no {_MEANT[name]}")
    if name == "dataschema" and not _SCHEME.match(value):
        raise InvalidEventError(name, "is no absolute URI")
    if name == "time" and not _is_time(value):
        raise InvalidEventError(name, f"is no {_MEANT[name]}")


_TEXTS: Final[Mapping[str, re.Pattern[str] | None]] = {
    "specversion": None,
    "id": None,
    "source": _URI_REFERENCE,
    "type": None,
    "subject": None,
    "dataschema": _URI_REFERENCE,
    "datacontenttype": _MEDIA_TYPE,
    "time": None,
}
"""The attributes of the specification's own, which are text, and how they look."""

_MEANT: Final = {
    "source": "URI reference",
    "dataschema": "URI",
    "datacontenttype": "media type",
    "time": "time by RFC 3339",
}


def _is_time(text: str) -> bool:
    match = _TIME.fullmatch(text.upper())
    if match is None:
        return False
    # A leap second is a time as well, which Python has none for.
    second = "59" if match[2] == "60" else match[2]
    try:
        datetime.fromisoformat(f"{match[1]}{second}{match[3]}")
    except ValueError:
        return False
    return True


def _check_base64(encoded: object) -> None:
    if not isinstance(encoded, str):
        raise InvalidEventError("data_base64", "must be text")
    try:
        base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidEventError("data_base64", f"is no base64: {error}") from None


def _is_encoded(headers: Mapping[str, object] | None) -> bool:
    """Tell whether a body is compressed, and can't be read as it is."""
    return bool(headers) and CONTENT_ENCODING in (headers or {})
