"""Starts the front. Loading takes a moment; if its daemon ends meanwhile, the front ends too."""

from __future__ import annotations

import os
import select
import sys
import threading


def main() -> None:
    """Load the rest, and serve."""
    loaded = threading.Event()
    threading.Thread(target=_end_with_daemon, args=(loaded,), name="orphaned", daemon=True).start()
    from tenantry.front.serving import main as serve

    loaded.set()
    serve()


def _end_with_daemon(loaded: threading.Event) -> None:
    """End the process once its daemon has closed standard input: the next daemon needs the port."""
    hung_up = select.poll()
    hung_up.register(sys.stdin.fileno(), 0)
    while not loaded.is_set():
        if hung_up.poll(200) and not loaded.is_set():
            os._exit(0)


if __name__ == "__main__":
    main()
