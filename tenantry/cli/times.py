"""Times on the command line: RFC 3339, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

_AGO: Final = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def moment(text: str) -> str:
    """Give a moment as RFC 3339 in UTC: given so, or as a while ago (90s, 15m, 2h, 7d).

    Raises `click.BadParameter`.
    """
    ago = _AGO.fullmatch(text)
    if ago is not None:
        then = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
    else:
        try:
            then = datetime.fromisoformat(text)
        except ValueError:
            raise click.BadParameter(
                f"{text!r} is no time: 2026-01-31T12:00:00Z, or 2h for two hours ago"
            ) from None
        if then.tzinfo is None:
            raise click.BadParameter(f"{text!r} has no zone: 2026-01-31T12:00:00Z is in UTC")
    return then.astimezone(UTC).isoformat().replace("+00:00", "Z")
