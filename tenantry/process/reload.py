"""The part of the configuration that takes effect without a restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import structlog

from tenantry.settings import Settings, SettingsError
from tenantry.telemetry.logging import configure

log: Final = structlog.get_logger("daemon")

RELOADABLE: Final = frozenset(
    {
        "workers",
        "log.level",
        "log.format",
        "consumer.batch_size",
        "consumer.batch_size_beside_others",
        "consumer.linger_ms",
        "shutdown.deadline_seconds",
        "security.jwt_secret",
    }
)
"""Dotted keys; all other keys take effect at the next start."""


class LiveSettings:
    """The settings in force. Only the main thread calls `reload`; any thread may read `now`."""

    def __init__(self, settings: Settings, load: Callable[[], Settings]) -> None:
        """`load` reads the configuration again, from the same place as at the start."""
        self.now = settings
        self._load = load
        self._told: list[Callable[[Settings], object]] = []

    def tell(self, taker: Callable[[Settings], object]) -> None:
        """Call `taker` with the settings in force after each reload, on the same thread."""
        self._told.append(taker)

    def reload(self) -> None:
        """Read the configuration again; a bad one changes nothing, and is logged."""
        try:
            new = self._load()
        except SettingsError as error:
            remedy = "the settings from before hold; mend it and reload again"
            log.error("daemon.reload_failed", error=str(error), remedy=remedy)  # noqa: TRY400
            return
        names = changed(self.now, new)
        self.now = merged(self.now, new)
        configure(self.now.log.level, self.now.log.format)
        for taker in self._told:
            taker(self.now)
        log.info(
            "daemon.reloaded",
            changed=sorted(names & RELOADABLE),
            at_the_next_start=sorted(names - RELOADABLE),
        )


def merged(old: Settings, new: Settings) -> Settings:
    """Return the old settings with the reloadable keys of the new ones."""
    tables: dict[str, dict[str, object]] = {}
    for dotted in RELOADABLE:
        table, _, key = dotted.rpartition(".")
        of = getattr(new, table) if table else new
        tables.setdefault(table, {})[key] = getattr(of, key)
    update = tables.pop("", {})
    for table, values in tables.items():
        update[table] = getattr(old, table).model_copy(update=values)
    return old.model_copy(update=update)


def changed(old: Settings, new: Settings) -> frozenset[str]:
    """Return the dotted keys whose values differ, without values, as some are secret."""
    before, after = dict(_flat(old.model_dump())), dict(_flat(new.model_dump()))
    return frozenset(
        key for key in before.keys() | after.keys() if before.get(key) != after.get(key)
    )


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
