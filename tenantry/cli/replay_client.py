"""Replays and discards of very many dead letters, call by call, with progress."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import click

from tenantry.cli import output
from tenantry.cli.client import ControlClient, tenant_path
from tenantry.cli.output import ApiError, CommandError

Which = dict[str, Any]

MOST_IDS: Final = 1000
"""Most ids in one call."""

AT_ONCE: Final = 5000
"""Most letters in one call while progress is shown."""

TIMEOUT: Final = 100.0
PAUSES: Final = (1.0, 2.0, 5.0, 10.0)
"""Seconds before each repetition of a call, while a service is away or the queue is in use."""

_NOT_NOW: Final = frozenset({409, 503})
_LEFT: Final = {
    "replayed_too_often": "replayed as often as they may be; --force replays them nevertheless",
    "refused_by_broker": "not taken by the broker; the daemon's log says why",
}


def given_filter(filters: Mapping[str, str | None]) -> dict[str, str]:
    """Return the conditions that were given, without the others."""
    return {name: value for name, value in filters.items() if value is not None}


def chosen(ids: Sequence[str], *, everything: bool, filters: Mapping[str, str | None]) -> Which:
    """Turn a command's arguments into the API's selection. Raises `click.UsageError`."""
    conditions = given_filter(filters)
    if sum((bool(ids), everything, bool(conditions))) != 1:
        raise click.UsageError(
            "say which: letters by their ids, or conditions (--reason, --topic, --since, "
            "--until), or --all"
        )
    if ids:
        return {"ids": list(dict.fromkeys(ids))}
    return {"all": True} if everything else {"filter": conditions}


@dataclass(frozen=True, eq=False, slots=True)
class ReplayClient:
    """Replays or discards letters, with as many calls as it takes.

    `done` is the API's name for the count: `replayed` or `discarded`.
    """

    client: ControlClient
    tenant_id: str
    done: str
    which: Which
    extra: Mapping[str, object] = field(default_factory=dict)

    def preview(self) -> dict[str, Any]:
        """Ask what would be done."""
        parts = [self._call(part | {"dry_run": True}) for part in self._parts()]
        places: Counter[tuple[str, int]] = Counter()
        for part in parts:
            for one in part["places"]:
                places[one["topic"], one["partition"]] += one["count"]
        return {
            "dry_run": True,
            "as_of": parts[0]["as_of"],
            "count": sum(part["count"] for part in parts),
            "replayed_too_often": sum(part["replayed_too_often"] for part in parts),
            "places": [
                {"topic": topic, "partition": partition, "count": count}
                for (topic, partition), count in sorted(places.items())
            ],
        }

    def show_preview(self, *, as_json: bool) -> None:
        """Print what would be done."""
        preview = self.preview()
        if as_json:
            output.print_json(preview)
            return
        count, worn = preview["count"], preview["replayed_too_often"]
        click.echo(f"{_counted(count)} would be {self.done}")
        if worn and self.done == "replayed" and not self.extra:
            click.echo(f"but for {worn} of them: {_LEFT['replayed_too_often']}")
        if preview["places"]:
            output.print_table(
                ("topic", "partition", "letters"),
                [(one["topic"], one["partition"], one["count"]) for one in preview["places"]],
            )

    def run(self, *, as_json: bool) -> None:
        """Do the work and print what was done. Raises `CommandError` if letters were left."""
        total: Counter[str] = Counter({self.done: 0})
        preview = self.preview()
        with output.working(self.done, preview["count"]) as advance:
            for part in self._parts():
                total += self._run_part(self._up_to(part, preview["as_of"]), advance)
        if as_json:
            output.print_json({self.done: total[self.done], **total})
        else:
            click.echo(f"{self.done} {_counted(total[self.done])}")
        left = [f"{total[name]} {why}" for name, why in _LEFT.items() if total[name]]
        if left:
            raise CommandError("; ".join(left))
        if "ids" in self.which and not total[self.done]:
            raise CommandError("there is no such dead letter")

    def _run_part(self, part: Which, advance: Callable[[int], None]) -> Counter[str]:
        total: Counter[str] = Counter()
        limit = {"limit": AT_ONCE} if sys.stderr.isatty() else {}
        while True:
            answer = self._call_again({**part, **self.extra, **limit})
            count = answer[self.done]
            total[self.done] += count
            for name in _LEFT:
                # Each call meets, and counts, the same letters that are left.
                total[name] = max(total[name], answer.get(name, 0))
            advance(count)
            if answer.get("complete", True):
                return total
            if not count:
                raise CommandError(
                    f"the daemon did not come to the end of the queue in time; {self.done} "
                    f"{_counted(total[self.done])}: the same command goes on"
                )

    @staticmethod
    def _up_to(part: Which, as_of: str) -> Which:
        """Exclude letters that die from now on: a replay that failed must not be repeated."""
        if "ids" in part:
            return part
        conditions = part.get("filter", {})
        until = min(as_of, conditions.get("until", as_of), key=datetime.fromisoformat)
        return {"filter": conditions | {"until": until}}

    def _parts(self) -> Iterator[Which]:
        ids = self.which.get("ids")
        if ids is None:
            yield self.which
            return
        for start in range(0, len(ids), MOST_IDS):
            yield {"ids": ids[start : start + MOST_IDS]}

    def _call_again(self, body: Which) -> dict[str, Any]:
        """Make a call, and repeat it while it can't be served now: a repetition does no harm."""
        for pause in PAUSES:
            try:
                return self._call(body)
            except ApiError as error:
                if error.status not in _NOT_NOW:
                    raise
                time.sleep(pause)
        return self._call(body)

    def _call(self, body: Which) -> dict[str, Any]:
        replay = self.done == "replayed"
        path = tenant_path(self.tenant_id, "dead-letters", *(["replay"] if replay else []))
        answer: dict[str, Any] = self.client.call(
            "POST" if replay else "DELETE", path, body, timeout=TIMEOUT
        )
        return answer


def _counted(count: int) -> str:
    return f"{count} dead letter{'' if count == 1 else 's'}"
