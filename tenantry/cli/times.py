"""Times on the command line: RFC 3339, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

_AGO: Final = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


class Time(click.ParamType[str]):
    """A moment, given as RFC 3339 with a zone, or as a while ago: 90s, 15m, 2h, 7d."""

    name = "time"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str:
        """Give the moment as RFC 3339 in UTC."""
        ago = _AGO.fullmatch(value)
        if ago is not None:
            moment = datetime.now(UTC) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        else:
            try:
                moment = datetime.fromisoformat(value)
            except ValueError:
                self.fail(
                    f"{value!r} is no time: 2026-01-31T12:00:00Z, or 2h for two hours ago",
                    param,
                    ctx,
                )
            if moment.tzinfo is None:
                self.fail(f"{value!r} has no zone: 2026-01-31T12:00:00Z is in UTC", param, ctx)
        return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


TIME: Final = Time()
