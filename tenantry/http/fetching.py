"""Requests to an identity provider: bounded in time and size, and without redirects."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MAX_BYTES: Final = 256 * 1024
"""The most bytes of an answer that are read."""


class FetchError(Exception):
    """The request failed; the message says why, and contains nothing that was sent."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """An answer, whatever its status."""

    status: int
    body: bytes


async def fetch(
    url: str,
    *,
    tls: ssl.SSLContext,
    seconds: float,
    form: Mapping[str, str] | None = None,
    auth: tuple[str, str] | None = None,
) -> Fetched:
    """Get a URL, or post a form to it, with the name and password in `auth` if given.

    `tls` has the trusted authorities, for https. The whole request takes at most `seconds`. Raises
    `FetchError`, also for a redirect: its target would be trusted as the provider is.
    """
    import httpx

    try:
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(
                verify=tls,
                timeout=seconds,
                follow_redirects=False,
                # By http the provider is on this machine, where no proxy is needed.
                trust_env=url.startswith("https:"),
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
            ) as client,
            client.stream(
                "GET" if form is None else "POST",
                url,
                data=None if form is None else dict(form),
                auth=None if auth is None else httpx.BasicAuth(*auth),
            ) as answer,
        ):
            if answer.is_redirect:
                raise FetchError(
                    f"it sends elsewhere (status {answer.status_code}), which is not followed"
                )
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise FetchError("it answers compressed, which was not asked for")
            body = b""
            async for part in answer.aiter_raw():
                body += part
                if len(body) > MAX_BYTES:
                    raise FetchError(f"it is larger than {MAX_BYTES} bytes")
            return Fetched(answer.status_code, body)
    except TimeoutError:
        raise FetchError(f"it takes longer than {seconds:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise FetchError(str(error) or type(error).__name__) from None


def trusting(ca_file: str) -> ssl.SSLContext:
    """Trust the authorities in a PEM file, or the system's if no file is given.

    Raises `ValueError`, whose message names the file.
    """
    try:
        if ca_file:
            Path(ca_file).read_bytes()
        return ssl.create_default_context(cafile=ca_file or None)
    except ssl.SSLError:
        raise ValueError(f"{ca_file} holds no certificate in PEM form") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"{ca_file} can't be read: {reason}") from None
