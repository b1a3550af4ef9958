"""`python -m tests.loaded` prints the modules of a daemon and its front that trace nothing."""

from __future__ import annotations

import sys

import tenantry.daemon
import tenantry.front.serving  # noqa: F401
from tenantry.tracing import open_tracer


def main() -> None:
    open_tracer(None).close()
    print(*sorted(sys.modules))


if __name__ == "__main__":
    main()
