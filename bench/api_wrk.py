"""HTTP load by wrk: as many requests as the server answers, over a few connections."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

CONNECTIONS = 16
THREADS = 2

# wrk's own report rounds its figures; this line gives them exactly.
_REPORT = """
function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\\nfigures {"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "failed": %d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """The figures of a run of wrk: requests a second, latencies in milliseconds."""

    rate: float
    p50: float
    p99: float


def missing() -> str | None:
    """Return what to install if wrk is missing; None if it is there."""
    if shutil.which("wrk"):
        return None
    return "wrk is missing (Debian and Ubuntu: apt install wrk; macOS: brew install wrk)"


def get(url: str, *, seconds: float, connections: int = CONNECTIONS) -> Load:
    """Send GET requests to `url` for some seconds."""
    return _run(url, "", seconds, connections)


def post(url: str, body: bytes, *, seconds: float, connections: int = CONNECTIONS) -> Load:
    """Send POST requests with JSON to `url` for some seconds."""
    script = (
        f'wrk.method = "POST"\nwrk.body = [==[{body.decode()}]==]\n'
        'wrk.headers["Content-Type"] = "application/json"\n'
    )
    return _run(url, script, seconds, connections)


def _run(url: str, script: str, seconds: float, connections: int) -> Load:
    """Run wrk. Raises `RuntimeError` if any request failed: the figures would mean nothing."""
    threads = min(THREADS, connections)
    how = [f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
    with tempfile.TemporaryDirectory(prefix="tenantry-wrk-") as directory:
        path = Path(directory) / "script.lua"
        path.write_text(script + _REPORT)
        done = subprocess.run(
            ["wrk", *how, "-s", os.fspath(path), url],
            capture_output=True,
            text=True,
            timeout=seconds + 60,
            check=True,
        )
    line = next(one for one in done.stdout.splitlines() if one.startswith("figures "))
    figures = json.loads(line.removeprefix("figures "))
    if figures["failed"] or not figures["requests"]:
        raise RuntimeError(f"{figures['failed']} requests to {url} failed: {done.stdout}")
    return Load(
        rate=figures["requests"] / figures["microseconds"] * 1e6,
        p50=figures["p50"] / 1000,
        p99=figures["p99"] / 1000,
    )
