"""HEAD, everywhere: what GET would answer, without the body."""

from __future__ import annotations

from starlette.types import Message, Scope, Send


def as_get(scope: Scope, send: Send) -> tuple[Scope, Send]:
    """Make a request's HEAD a GET whose body is kept back; any other request stays as it is.

    An answer without an end, a stream, ends after its head.
    """
    if scope["type"] != "http" or scope["method"] != "HEAD":
        return scope, send
    ended = False

    async def keep_back(message: Message) -> None:
        nonlocal ended
        if ended:
            return
        if message["type"] == "http.response.start":
            await send(message)
            names = {name.lower() for name, _ in message.get("headers", ())}
            ended = b"content-length" not in names
        else:
            ended = not message.get("more_body", False)
        if ended:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return {**scope, "method": "GET"}, keep_back
