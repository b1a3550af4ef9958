"""The peer of the API: a bare FastAPI handler that answers with constant bytes.

It is served as the daemon serves: by the same server with the same settings, on a thread beside the
main one, in a process of its own.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from fastapi import FastAPI, Request, Response

from tenantry.http.server import ApiServer
from tenantry.telemetry import logging


def application(size: int) -> FastAPI:
    """Make an application that answers every GET and POST with `size` bytes."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    constant = b'"' + b"x" * (size - 2) + b'"'

    @app.get("/")
    async def read() -> Response:
        return Response(constant, media_type="application/json")

    @app.post("/")
    async def write(request: Request) -> Response:
        await request.body()
        return Response(constant, media_type="application/json", status_code=202)

    return app


@contextmanager
def running(size: int) -> Iterator[str]:
    """Serve a bare handler in a process of its own; yield its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.api_bare", str(size)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
    finally:
        process.terminate()
        process.communicate(timeout=20)


def main() -> None:
    """Serve until SIGTERM."""
    logging.configure("warning")
    server = ApiServer(application(int(sys.argv[1])), tcp=("127.0.0.1", 0))
    server.bind()
    stop = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    thread = threading.Thread(target=server.run, name="api")
    thread.start()
    server.wait_started(20)
    print(server.tcp_port, flush=True)
    signal.sigwait(stop)
    server.stop()
    thread.join(20)


if __name__ == "__main__":
    main()
