"""Publishes over HTTP: `python -m bench.http_sender PORT (flood | quiet) ...`.

`flood TENANT CALLS SIZE COUNT` keeps so many calls under way, each a list of so many messages,
until the count is accepted, and prints how often each status came and the seconds that it took.
`quiet RATE TENANT...` has each tenant publish a message so many times a second until its input
ends; it prints for each call when it began, by the machine's clock, the seconds that it took, and
the message's id, null if it was refused.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence

PAUSE = 1.0
"""Seconds before another attempt where the answer does not say."""


class Client:
    """A connection that is kept, and opened again where the server closes it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def publish(self, tenant: str, body: bytes) -> tuple[int, float, bytes]:
        """Publish; return the status, when to try again, in seconds, and the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(
            f"POST /tenants/{tenant}/messages HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines if line)
        answer = await reader.readexactly(int(headers.get("content-length", 0)))
        if headers.get("connection") == "close":
            self.close()
        return int(status.split()[1]), float(headers.get("retry-after", PAUSE)), answer

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def flood(port: int, tenant: str, calls: int, size: int, count: int) -> None:
    """Publish lists side by side."""
    left, statuses = count // size, Counter[int]()
    body = json.dumps([{"payload": {"n": n, "text": "x" * 40}} for n in range(size)]).encode()

    async def one() -> None:
        nonlocal left
        client = Client(port)
        while left > 0:
            left -= 1
            status, pause, _ = await client.publish(tenant, body)
            statuses[status] += 1
            if status != 202:
                left += 1
                client.close()  # the server would end a connection that is idle for so long
                await asyncio.sleep(pause)
        client.close()

    began = time.time()
    await asyncio.gather(*(one() for _ in range(calls)))
    print(json.dumps({"statuses": statuses, "seconds": time.time() - began}))


async def quiet(port: int, rate: float, tenants: Sequence[str]) -> None:
    """Publish now and then, until the input ends."""
    over = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    called: list[tuple[float, float, str | None]] = []

    async def one(tenant: str, offset: float) -> None:
        client = Client(port)
        due = time.time() + offset
        while not over.done():
            await asyncio.sleep(max(0.0, due - time.time()))
            began = time.time()
            due = max(due + 1 / rate, began)
            status, _, answer = await client.publish(tenant, b'{"payload": {"n": 1}}')
            made = json.loads(answer)["ids"][0] if status == 202 else None
            called.append((began, time.time() - began, made))
        client.close()

    each = 1 / rate / len(tenants)
    await asyncio.gather(*(one(tenant, each * number) for number, tenant in enumerate(tenants)))
    print(json.dumps(called))


if __name__ == "__main__":
    if sys.argv[2] == "flood":
        _, _, _, wanted, *counts = sys.argv
        asyncio.run(flood(int(sys.argv[1]), wanted, *map(int, counts)))
    else:
        asyncio.run(quiet(int(sys.argv[1]), float(sys.argv[3]), sys.argv[4:]))
