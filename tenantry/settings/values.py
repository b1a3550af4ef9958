"""Checks of settings' values: each returns the value, or raises an error that says why not."""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, TypeAlias
from urllib.parse import unquote

from pydantic import AfterValidator, Field, SecretStr
from pydantic_core import PydanticCustomError

from tenantry.urls import AMQP, IGGY, alternatives, split

MIN_SECRET: Final = 32


def check_url(value: SecretStr, *schemes: str, host: bool, several: bool = False) -> SecretStr:
    """Take a URL of one of these schemes, or an empty one; with `several`, of several hosts."""
    text = value.get_secret_value()
    if not text:
        return value
    wanted = " or ".join(f"{scheme}://" for scheme in schemes)
    if not text.isprintable() or " " in text:
        raise PydanticCustomError("url", "holds a space or a control character")
    try:
        url, *others = (split(one) for one in (alternatives(text) if several else (text,)))
        # PostgreSQL allows several hosts, and libpq has rules of its own for them.
        port = url.port if several or host or "," not in url.netloc else None
        ports = {port, *(one.port for one in others)}
    except ValueError:
        raise PydanticCustomError("url", "is no URL: its host or port can't be read") from None
    if url.scheme not in schemes or not text.startswith(f"{url.scheme}://"):
        raise PydanticCustomError("url", f"must be a URL that begins with {wanted}")
    if host and not all(one.hostname for one in (url, *others)):
        raise PydanticCustomError("url", "names no host")
    if 0 in ports:
        raise PydanticCustomError("url", "port 0 is no port")
    return value


def amqp_url(value: SecretStr) -> SecretStr:
    """Take the URL of a RabbitMQ, or of several."""
    return check_url(value, *AMQP, host=True, several=True)


def broker_url(value: SecretStr) -> SecretStr:
    """Take the URL of a broker of any kind."""
    several = value.get_secret_value().startswith(AMQP)
    return check_url(value, *AMQP, *IGGY, host=True, several=several)


def http_url(value: SecretStr) -> SecretStr:
    """Take a URL of HTTP."""
    return check_url(value, "http", "https", host=True, several=True)


def postgres_url(value: SecretStr) -> SecretStr:
    """Take the URL of a PostgreSQL."""
    return check_url(value, "postgresql", "postgres", host=False)


def nameable(value: str) -> str:
    """Take a path that a line of text can name."""
    if any(unicodedata.category(char) in {"Cc", "Cs"} for char in value):
        raise PydanticCustomError("path", "holds a control character, or is not UTF-8")
    return value


def nameable_path(value: Path) -> Path:
    """Take a path that a line of text can name."""
    nameable(str(value))
    return value


def one_or_several(value: object) -> object:
    """Turn a text into a list of one, and an empty text into an empty list."""
    if isinstance(value, str):
        return (value,) if value else ()
    return tuple(value) if isinstance(value, list) else value


def secrets(value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    """Take secrets that are long enough to sign with."""
    for number, secret in enumerate(value, start=1):
        size = len(secret.get_secret_value().encode())
        if size < MIN_SECRET:
            which = f"secret {number} of {len(value)}: " if len(value) > 1 else ""
            raise PydanticCustomError(
                "secret", f"{which}must be at least {MIN_SECRET} bytes, not {size}"
            )
    return value


def api_address(value: str) -> str:
    """Take the address of an API."""
    check_url(SecretStr(value), "http", "https", host=True)
    return value.rstrip("/")


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def jwks_url(value: str) -> str:
    """Take the URL of an identity provider's keys or of its issuer."""
    check_url(SecretStr(value), "https", "http", host=True)
    url = split(value)
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        raise PydanticCustomError("url", "must be https: by http who is on the way signs tokens")
    if "@" in url.netloc:
        raise PydanticCustomError("url", "holds a user: keys that verify are there for everybody")
    return value


def public_url(value: str) -> str:
    """Take the address under which browsers reach the server."""
    check_url(SecretStr(value), "https", "http", host=True)
    if not value:
        return value
    url = split(value)
    if url.scheme == "http" and not is_loopback(url.hostname or ""):
        raise PydanticCustomError("url", "must be https: by http who is on the way takes sessions")
    if "@" in url.netloc or url.query or url.fragment or not value.isascii():
        raise PydanticCustomError(
            "url", "must be https://HOST, perhaps with a port and a path, and nothing more"
        )
    return value.rstrip("/")


def client_id(value: str) -> str:
    """Take a client's id at a provider."""
    if not (value.isascii() and value.isprintable()):
        raise PydanticCustomError("client", "holds a character that is none of a client's id")
    return value


def client_secret(value: SecretStr) -> SecretStr:
    """Take the secret of a client at a provider."""
    text = value.get_secret_value()
    if not (text.isascii() and text.isprintable()):
        raise PydanticCustomError("client", "holds a character that is none of a client's secret")
    return value


def login_scopes(value: str) -> str:
    """Take the scopes to ask a provider for; return them with single spaces between."""
    words = value.split()
    if not all(re.fullmatch(r"[!#-\[\]-~]+", word, re.ASCII) for word in words):
        raise PydanticCustomError("scopes", "must be words with spaces between them")
    if "openid" not in words:
        raise PydanticCustomError("scopes", "must have openid among them")
    return " ".join(words)


def collector_url(value: str) -> str:
    """Take the address of a collector of traces."""
    check_url(SecretStr(value), "http", "https", host=True)
    if "@" in split(value).netloc:
        raise PydanticCustomError("url", "holds a user: what proves who sends is tracing.headers")
    return value.rstrip("/")


def header_list(value: SecretStr) -> SecretStr:
    """Take headers that HTTP can carry."""
    for name, text in headers(value.get_secret_value()):
        if not re.fullmatch(r"[A-Za-z0-9!#$&'*+.^_`|~-]+", name, re.ASCII):
            raise PydanticCustomError("headers", "must look like name=value,other=value")
        if not (text.isascii() and text.isprintable()):
            raise PydanticCustomError("headers", "holds a value that HTTP can't carry")
    return value


def headers(text: str) -> Iterator[tuple[str, str]]:
    """Read `name=value,other=value`; values may be percent-encoded."""
    for part in text.split(","):
        if part.strip():
            name, _, value = part.partition("=")
            yield name.strip(), unquote(value.strip())


def empty_is_none(value: object) -> object:
    """Turn an empty text into None."""
    return None if value == "" else value


FileName: TypeAlias = Annotated[str, Field(max_length=4096), AfterValidator(nameable)]
FilePath: TypeAlias = Annotated[Path, AfterValidator(nameable_path)]
"""A path that a line of text and a URL can name."""

Port: TypeAlias = Annotated[int, Field(ge=0, le=65535)]
Interval: TypeAlias = Annotated[float, Field(ge=0, le=31_536_000, allow_inf_nan=False)]
Seconds: TypeAlias = Annotated[float, Field(gt=0, le=86400, allow_inf_nan=False)]


def topic(value: str) -> str:
    """Take a topic's name."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", value, re.ASCII):
        raise PydanticCustomError("topic", "is no topic")
    return value


def handler(value: str) -> str:
    """Take the name of a function, with its module's."""
    if not all(part.isidentifier() for name in value.split(":") for part in name.split(".")):
        raise PydanticCustomError("handler", 'must look like "package.module:function"')
    if value.count(":") != 1:
        raise PydanticCustomError("handler", 'must look like "package.module:function"')
    return value


Topic: TypeAlias = Annotated[str, AfterValidator(topic)]
HandlerName: TypeAlias = Annotated[str, AfterValidator(handler)]


def file(value: str) -> str:
    """Take a file's name; replace `~` by the home directory."""
    return str(Path(value).expanduser()) if value else value


File: TypeAlias = Annotated[str, Field(max_length=4096), AfterValidator(file)]


Audience: TypeAlias = Annotated[str, Field(min_length=1, max_length=1024)]
