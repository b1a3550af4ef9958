"""What a daemon has from its parent, where it is one of several processes of one service."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

VARIABLE: Final = "TENANTRY_INHERITED"
"""The environment variable that names the descriptors; it is the parent's alone to set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inherited:
    """Descriptors of sockets that all children listen on, and of the way to their parent.

    `control` listens on the service's control socket, `relay` is the near end of its front's,
    `metrics` listens on the port for metrics, if there is one. `parent` is a stream: what is
    written there reaches the parent, and its end means that the parent is gone. `port` is that of
    the API, `family` the directory in which each child has one of its own. In `lost_spans` the
    front counts spans that did not arrive, where it is traced.
    """

    control: int
    relay: int
    parent: int
    port: int | None
    metrics: int | None
    family: str
    lost_spans: int | None = None

    def write(self) -> str:
        """Write it for a child's environment."""
        return json.dumps(asdict(self))

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that a child is to have."""
        there = (self.control, self.relay, self.parent, self.metrics, self.lost_spans)
        return tuple(one for one in there if one is not None)

    @property
    def siblings(self) -> list[Path]:
        """The control sockets of all children, one's own included."""
        return sorted(Path(self.family).glob("*/control.sock"))


def inherited(environ: Mapping[str, str] = os.environ) -> Inherited | None:
    """Give what this process has from a parent; None where it has none."""
    text = environ.get(VARIABLE)
    return None if text is None else Inherited(**json.loads(text))
