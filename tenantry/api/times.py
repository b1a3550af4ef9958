"""Times as the API writes and reads them: RFC 3339, UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Final

# An unescaped `+` arrives as a space in a query string, so a space stands for it here.
_RFC_3339: Final = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)[Tt ](?P<time>\d\d:\d\d:\d\d)(?P<fraction>\.\d{1,12})?"
    r"(?P<zone>[Zz]|[+ -]\d\d:\d\d)",
    re.ASCII,
)


def parse_time(text: str) -> datetime | None:
    """Read an RFC 3339 time as UTC; None if it is none. What is below a microsecond is cut off."""
    match = _RFC_3339.fullmatch(text)
    if match is None:
        return None
    zone = match["zone"].upper().replace(" ", "+")
    fraction = (match["fraction"] or "")[:7]
    try:
        moment = datetime.fromisoformat(f"{match['day']}T{match['time']}{fraction}{zone}")
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def format_time(moment: datetime) -> str:
    """Write a time with a zone as RFC 3339 in UTC with microseconds and `Z`."""
    utc = moment.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(timespec='microseconds')}Z"
