"""CloudEvents 1.0: the attributes of a message that is an event, and its message id.

A body stays as it is. In binary mode the attributes are headers of the message, as the binding for
AMQP names them. In structured mode they are in its body, and are added as the same headers, so that
readers find them in one place.
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
"""The prefix of an attribute's name, among headers."""

PREFIXES: Final = (PREFIX, "cloudEvents_")
"""The binding has two prefixes: some clients can't use a colon."""

MEDIA_TYPE: Final = "application/cloudevents"
"""The prefix of the content types of all formats."""

STRUCTURED: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"

LONGEST_ID: Final = 255
"""The most bytes of a message's id in AMQP."""

LONGEST_NAME: Final = 128
"""The most characters of an attribute's name; by the specification it should have 20 at most."""

Value: TypeAlias = str | int | bool | bytes | datetime
Attributes: TypeAlias = Mapping[str, Value]

_NAME: Final = re.compile(r"[a-z0-9]+", re.ASCII)
_NONCHARACTERS: Final = "".join(
    chr(plane << 16 | end) for plane in range(17) for end in (65534, 65535)
)
_FORBIDDEN: Final = re.compile(f"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef{_NONCHARACTERS}]")
# Non-ASCII characters are allowed as in IRIs, except for spaces.
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
    """A message claims to be a CloudEvent, and is not valid: the attribute and the problem."""

    def __init__(self, attribute: str, problem: str) -> None:
        super().__init__(f"{attribute}: {problem}" if attribute else problem)
        self.attribute = attribute
        self.problem = problem


def media_type(content_type: str) -> str:
    """Return a content type without its parameters."""
    return content_type.partition(";")[0].strip().lower()


def understood(message: Incoming) -> Incoming:
    """Return a message as it is stored: a CloudEvent has an id, and its attributes as headers.

    Any other message is returned as it is, and so is an event of an unknown version or format.
    Raises `InvalidEventError`.
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
    # A message without an id of its own has its dead letter's id since it was replayed.
    has_its_own = message.id is not None and message.id != (headers or {}).get(REPLAY_HEADER)
    return message._replace(
        id=message.id if has_its_own else message_id(attributes), headers=headers
    )


def of_headers(headers: Mapping[str, object]) -> Attributes | None:
    """Read the attributes that are among a message's headers.

    None if one that every CloudEvent has is missing, or the version is another: then these are
    headers like any others. Raises `InvalidEventError`.
    """
    attributes = named_in(headers)
    if attributes.get("specversion") != SPECVERSION or not attributes.keys() >= {*REQUIRED}:
        return None
    return check(attributes)


def named_in(headers: Mapping[str, object]) -> dict[str, object]:
    """Return the attributes named by headers, unchecked; null is no attribute."""
    found: dict[str, object] = {}
    for name, value in headers.items():
        if value is not None and name.startswith(PREFIXES):
            found[name[len(PREFIX) :]] = value
    return found


def of_document(body: bytes) -> Attributes | None:
    """Read the attributes of an event in JSON; None if its version is another.

    Raises `InvalidEventError`.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidEventError("", f"the event is not JSON: {error}") from None
    return of_object(document)


def of_object(document: object) -> Attributes | None:
    """Read the attributes of an event that was parsed as JSON, as `of_document` does."""
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
    """Return the attributes of a stored message by their names; None if it is no CloudEvent."""
    attributes = named_in(headers)
    if attributes.get("specversion") != SPECVERSION or not attributes.keys() >= {*REQUIRED}:
        return None
    if content_type is not None and not content_type.lower().startswith(MEDIA_TYPE):
        attributes["datacontenttype"] = content_type
    return attributes


def check(attributes: Mapping[str, object]) -> Attributes:
    """Check the attributes of a CloudEvent and return them. Raises `InvalidEventError`."""
    for name in REQUIRED:
        if name not in attributes:
            raise InvalidEventError(name, "is required")
    if attributes["specversion"] != SPECVERSION:
        raise InvalidEventError("specversion", f"must be {SPECVERSION}, which is all that is known")
    left = MOST_BYTES
    checked: dict[str, Value] = {}
    for name, value in attributes.items():
        # The limit comes first, so that neither megabytes nor a million attributes are scanned.
        left -= len(name) + _bytes(value)
        if left < 0:
            raise InvalidEventError("", f"its attributes have more than {MOST_BYTES} bytes")
        checked[name] = _checked(name, value)
    return checked


def message_id(attributes: Mapping[str, object]) -> str:
    """Return the message id of an event: its source and its id, with a space between.

    No source has a space, so no two events share one. If that is longer than AMQP accepts, it is
    `sha256:` and its digest.
    """
    both = f"{attributes['source']} {attributes['id']}"
    data = both.encode()
    return both if len(data) <= LONGEST_ID else f"sha256:{hashlib.sha256(data).hexdigest()}"


def as_headers(attributes: Attributes) -> dict[str, object]:
    """Return attributes as headers; a content type is the message's own."""
    return {
        f"{PREFIX}{name}": value for name, value in attributes.items() if name != "datacontenttype"
    }


def _beside(headers: Mapping[str, object] | None, attributes: Attributes) -> Mapping[str, object]:
    """Add the attributes of a body as headers; the sender's own headers stay."""
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
"""The specification's own attributes that are text, and their patterns."""

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
    # A leap second is valid, too, which Python does not know.
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
    """Return whether a body is encoded, compressed say, and can't be read as it is."""
    return bool(headers) and CONTENT_ENCODING in (headers or {})
