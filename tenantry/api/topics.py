"""Topics as people write them: `events`, `events:8`, `events:ordered`, `events:8:ordered`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from tenantry.domain.topics import Ordering

ORDERED: Final = "ordered"
FORM: Final = f"NAME[:PARTITIONS][:{ORDERED}]"


def topic_of(text: str) -> str | dict[str, Any]:
    """Read a topic as the API takes it. Raises `ValueError`."""
    name, *rest = text.split(":")
    if not rest:
        return name
    settings: dict[str, Any] = {}
    for one in rest:
        if one == ORDERED and "ordering" not in settings:
            settings["ordering"] = Ordering.PARTITION.value
        elif one.isascii() and one.isdigit() and len(one) < 10 and not settings:
            settings["partitions"] = int(one)
        else:
            raise ValueError(f"{text!r} is no topic: {FORM}, as events:8")
    return {"name": name, **settings}


def topics_in(text: str) -> list[str | dict[str, Any]]:
    """Read topics with commas or blanks between them. Raises `ValueError`."""
    return [topic_of(one) for one in text.replace(",", " ").split()]


def shown(settings: Iterable[Mapping[str, Any]]) -> list[str]:
    """Write topics in the form that `topics_in` reads."""
    return [
        f"{one['name']}:{one['partitions']}"
        + (f":{ORDERED}" if one["ordering"] == Ordering.PARTITION else "")
        for one in settings
    ]
