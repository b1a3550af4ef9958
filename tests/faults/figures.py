"""An experiment's measurements, and the faults it has found."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

RECOVERY = 10.0
"""Seconds after a service's return within which the contract promises recovery."""

FLAT_MB = 16.0
"""Megabytes a process's resident set may rise by between the first and the last third of rounds."""

FEWEST_ROUNDS = 9
"""Rounds that a process must have lived through for its memory to be judged."""


@dataclass(slots=True, kw_only=True)
class Figures:
    """An experiment's outcome. It has failed if `wrong` has any entry."""

    experiment: str
    seed: int
    rounds: int = 0
    seconds: float = 0.0
    confirmed: int = 0
    stored: int = 0
    dead_lettered: int = 0
    duplicates: int = 0
    recoveries: list[float] = field(default_factory=list)
    rss_first: float = 0.0
    rss_peak: float = 0.0
    rss_last: float = 0.0
    rss_by_process: dict[int, list[float]] = field(default_factory=dict)
    """Megabytes at the end of each round that a process has lived through."""
    notes: dict[str, Any] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    timed: bool = True
    """Whether exceeding a promised time is wrong: on a machine that is busy otherwise it is not."""
    skipped: str | None = None

    @property
    def ok(self) -> bool:
        return not self.wrong

    def recovered(self, seconds: float) -> None:
        """Record a recovery, which must take no longer than promised."""
        self.recoveries.append(seconds)
        self.took(seconds, RECOVERY, f"round {self.rounds + 1}: recovery")

    def took(self, seconds: float, promised: float, what: str) -> None:
        """Compare the seconds that something took with those promised."""
        if self.timed and seconds > promised:
            self.wrong.append(f"{what} took {seconds:.1f} s")

    def resident(self, process: int, megabytes: float) -> None:
        """Record a process's resident set at the end of a round."""
        self.rss_by_process.setdefault(process, []).append(megabytes)

    def judge_memory(self) -> None:
        """Check that no process has grown from fault to fault."""
        for samples in self.rss_by_process.values():
            if len(samples) < FEWEST_ROUNDS:
                continue
            third = len(samples) // 3
            early = statistics.median(samples[:third])
            late = statistics.median(samples[-third:])
            self.notes["resident_mb"] = f"{early:.0f} in the first third, {late:.0f} in the last"
            if late - early > FLAT_MB:
                grown = f"from {early:.0f} to {late:.0f} MB in {len(samples)} rounds"
                self.wrong.append(f"the resident set grew {grown}")

    def document(self) -> dict[str, Any]:
        """Return the outcome as a JSON document."""
        return {
            "experiment": self.experiment,
            "ok": self.ok,
            "skipped": self.skipped,
            "seed": self.seed,
            "rounds": self.rounds,
            "seconds": round(self.seconds, 1),
            "confirmed": self.confirmed,
            "stored": self.stored,
            "dead_lettered": self.dead_lettered,
            "duplicates": self.duplicates,
            "recovery_seconds": self._recovery(),
            "rss_mb": {
                "first": round(self.rss_first, 1),
                "peak": round(self.rss_peak, 1),
                "last": round(self.rss_last, 1),
            },
            **self.notes,
            "wrong": self.wrong,
        }

    def lines(self) -> Iterator[str]:
        """Yield the outcome in words, line by line."""
        if self.skipped is not None:
            yield f"{self.experiment}: skipped: {self.skipped}"
            return
        yield f"{self.experiment}: {'ok' if self.ok else 'FAILED'}, seed {self.seed}"
        yield (
            f"  {self.rounds} rounds in {self.seconds:.0f} s; {self.confirmed} confirmed,"
            f" {self.stored} stored, {self.dead_lettered} dead letters,"
            f" {self.duplicates} delivered again"
        )
        if self.recoveries:
            found = self._recovery()
            yield f"  recovery: median {found['median']} s, longest {found['longest']} s"
        if self.rss_peak:
            yield (
                f"  resident: {self.rss_first:.0f} MB at first, {self.rss_peak:.0f} at most,"
                f" {self.rss_last:.0f} at last"
            )
        for name, value in self.notes.items():
            yield f"  {name.replace('_', ' ')}: {value}"
        for one in self.wrong:
            yield f"  wrong: {one}"

    def _recovery(self) -> dict[str, float]:
        if not self.recoveries:
            return {}
        return {
            "median": round(statistics.median(self.recoveries), 2),
            "longest": round(max(self.recoveries), 2),
        }
