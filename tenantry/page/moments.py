"""Moments at which a tenant is shown: a version, or a time."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from tenantry.page.rendering import UNKNOWN, clipped

_TO_THE_MINUTE: Final = 16
_TO_THE_SECOND: Final = 19


class Moment(NamedTuple):
    """A moment, as the API is asked for it, and the tenant's state then; empty if there was none.

    The empty text stands for no moment.
    """

    asked: str
    tenant: Mapping[str, Any]

    @property
    def is_version(self) -> bool:
        """Whether the moment is a version rather than a time."""
        return self.asked.isdecimal()

    @property
    def title(self) -> str:
        """The moment's title on the page."""
        if not self.asked:
            return UNKNOWN
        if self.is_version:
            return f"version {self.asked}"
        version = self.tenant.get("version")
        then = "no such tenant" if version is None else f"version {version}"
        return f"{_told(self.asked)}, {then}"

    @property
    def typed(self) -> str:
        """The text of the form's field for a time."""
        return "" if self.is_version else self.asked[:_TO_THE_SECOND]


def in_utc(text: str) -> str:
    """Add the zone, UTC, to a time from a browser's time field, and seconds if it has none."""
    if text[10:11] == "T" and len(text) in {_TO_THE_MINUTE, _TO_THE_SECOND}:
        return f"{text}:00Z" if len(text) == _TO_THE_MINUTE else f"{text}Z"
    return text


def seconds(written: str) -> int:
    """Return a time of the API in seconds since 1970."""
    return int(datetime.fromisoformat(written).timestamp())


def _told(asked: str) -> str:
    try:
        at = datetime.fromisoformat(asked).astimezone(UTC)
    except (ValueError, OverflowError):
        return clipped(asked)
    return f"{at:%Y-%m-%d %H:%M:%S} UTC"
