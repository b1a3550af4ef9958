"""A rate with bursts: so many a second in the long run, so many at once after a pause."""

from __future__ import annotations


class TokenBucket:
    """Tokens come in at `rate` a second and are saved up to `burst`; whatever is done takes some.

    What takes no more than is `available` never takes more, in any span of time, than its seconds
    at the rate and one burst. Times are seconds of one clock; one that steps back brings nothing
    and takes nothing. It belongs to one thread.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, *, rate: float, burst: float | None, now: float, full: bool) -> None:
        """Begin `full`, or empty; without a `burst` a second's worth is saved."""
        self._at = now
        self._set(rate, burst)
        self._tokens = self.burst if full else 0.0

    def available(self, now: float) -> int:
        """Give how many whole tokens there are."""
        self._fill(now)
        # Twenty times a twentieth is a little less than one.
        return max(0, int(self._tokens + 1e-9))

    def take(self, count: float) -> None:
        """Take tokens; those that are not there are owed, and come in first."""
        self._tokens -= count

    def seconds_until(self, count: float, now: float) -> float:
        """Tell in how many seconds there are so many tokens, or the bucket is full."""
        self._fill(now)
        return max(0.0, (min(count, self.burst) - self._tokens) / self.rate)

    def change(self, *, rate: float, burst: float | None, now: float) -> None:
        """Have another rate and burst from now on; what is saved stays, up to the new burst."""
        self._fill(now)
        self._set(rate, burst)
        self._tokens = min(self._tokens, self.burst)

    def _set(self, rate: float, burst: float | None) -> None:
        self.rate = rate
        # A bucket that can't hold one token would let nothing through, ever.
        self.burst = max(1.0, rate if burst is None else burst)

    def _fill(self, now: float) -> None:
        elapsed = now - self._at
        self._at = now
        if elapsed > 0:
            self._tokens = min(self.burst, self._tokens + elapsed * self.rate)
