"""TLS to RabbitMQ, for AMQP and the management API: authorities, our certificate, errors."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from tenantry.broker.port import BrokerError

if TYPE_CHECKING:
    from tenantry.settings import Settings

# OpenSSL's numbers of what is wrong with a certificate (X509_V_ERR_...).
_NOT_YET: Final = 9
_EXPIRED: Final = 10
_UNTRUSTED: Final = {2, 18, 19, 20, 21, 27}
_OTHER_NAME: Final = {62, 63, 64}

_MOST: Final = 12
"""How many errors are followed in search of the cause: libraries wrap each other's."""

_REASON: Final = re.compile(r"\[SSL: ([A-Z0-9_]+)\]")

_ENDED: Final = re.compile(r"reset by peer|Broken pipe|ConnectionReset|BrokenPipe|disconnected")
_ENDS: Final = (
    "the broker ends the TLS connection as soon as it is made; it may want a certificate of ours "
    "that it trusts: rabbitmq.cert_file (RABBITMQ_CERT_FILE), with its rabbitmq.key_file"
)
_TRUST: Final = (
    "is of an authority that is not trusted here: set rabbitmq.ca_file (RABBITMQ_CA_FILE) to the "
    "authority's certificate, or add that to the system's trust store (or SSL_CERT_FILE)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files; an empty name means none.

    Without `ca_file` the system's trust store is used, and SSL_CERT_FILE if that is set; without
    `key_file` the key is looked for in `cert_file`.
    """

    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    ca_key: str = "rabbitmq.ca_file (RABBITMQ_CA_FILE)"
    """The setting that names `ca_file`."""

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the files that the settings name."""
        given = settings.rabbitmq
        mine = cls(ca_file=given.ca_file, cert_file=given.cert_file, key_file=given.key_file)
        if not settings.broker.ca_file:
            return mine
        return replace(
            mine, ca_file=settings.broker.ca_file, ca_key="broker.ca_file (BROKER_CA_FILE)"
        )

    def context(self) -> ssl.SSLContext:
        """Make the SSL context for connections. Raises `BrokerError`, which names the setting."""
        return _context(self)


SYSTEMS: Final = Tls()
"""The system's trust store, and no certificate of our own."""


@cache
def _context(tls: Tls) -> ssl.SSLContext:
    for key, path in (
        (tls.ca_key, tls.ca_file),
        ("rabbitmq.cert_file (RABBITMQ_CERT_FILE)", tls.cert_file),
        ("rabbitmq.key_file (RABBITMQ_KEY_FILE)", tls.key_file),
    ):
        if path:
            _see_that_it_can_be_read(key, path)
    try:
        context = ssl.create_default_context(cafile=tls.ca_file or None)
    except (ssl.SSLError, OSError) as error:
        raise BrokerError(
            f"{tls.ca_key}: {tls.ca_file} holds no certificate in PEM form"
        ) from error
    if tls.cert_file:
        try:
            # Without this, OpenSSL would ask for the password on the terminal.
            context.load_cert_chain(tls.cert_file, tls.key_file or None, password=_no_password)
        except (ssl.SSLError, OSError, _EncryptedError) as error:
            raise BrokerError(_why_no_chain(tls, error)) from error
    elif tls.key_file:
        raise BrokerError(
            "rabbitmq.key_file (RABBITMQ_KEY_FILE) is set, and rabbitmq.cert_file is not: a key "
            "goes with its certificate"
        )
    return context


def _see_that_it_can_be_read(key: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise BrokerError(f"{key}: {path} can't be read: {reason}") from error


class _EncryptedError(Exception):
    """A key is encrypted and needs a password."""


def _no_password() -> str:
    raise _EncryptedError


def _why_no_chain(tls: Tls, error: Exception) -> str:
    reason = str(getattr(error, "reason", "") or "")
    if "MISMATCH" in reason:
        return (
            f"rabbitmq.key_file (RABBITMQ_KEY_FILE): {tls.key_file or tls.cert_file} is not the "
            f"key of the certificate in {tls.cert_file}"
        )
    if not _has_certificate(tls.cert_file):
        return (
            f"rabbitmq.cert_file (RABBITMQ_CERT_FILE): {tls.cert_file} holds no certificate in "
            "PEM form"
        )
    key = tls.key_file or tls.cert_file
    return (
        f"rabbitmq.key_file (RABBITMQ_KEY_FILE): {key} holds no key in PEM form that is not "
        "encrypted"
    )


def _has_certificate(path: str) -> bool:
    found = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    with suppress(ssl.SSLError, OSError):
        found.load_verify_locations(path)
    return bool(found.cert_store_stats()["x509"])


def problem(error: BaseException, *, secured: bool = False) -> str | None:
    """Return in plain words what is wrong with TLS, or None if the error is another one.

    On a `secured` connection that was still being opened, an end without a reason counts as well: a
    client without a certificate, or with a wrong one, learns of it only after its first message.
    """
    causes = list(causes_of(error))
    for one in causes:
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"the broker's certificate {_verdict(one)}"
    # Pika passes some errors on as words alone.
    words = " ".join(str(one) for one in causes)
    if (said := _REASON.search(words)) is not None:
        return _of_handshake(said[1])
    if "EOF occurred in violation" in words or (secured and _ENDED.search(words)):
        return _ENDS
    return None


def _verdict(error: ssl.SSLCertVerificationError) -> str:
    match error.verify_code:
        case code if code == _EXPIRED:
            return "has expired: it has to be renewed"
        case code if code == _NOT_YET:
            return "is not valid yet: look at it and at both clocks"
        case code if code in _OTHER_NAME:
            return f"is for another name: {error.verify_message}; reach it by a name it carries"
        case code if code in _UNTRUSTED:
            return _TRUST
        case _:
            return f"is refused: {error.verify_message}"


def _of_handshake(reason: str) -> str:
    if reason == "UNEXPECTED_EOF_WHILE_READING":
        return _ENDS
    if "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        return f"{_ENDS} ({reason})"
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        return f"the broker refuses our certificate, that of rabbitmq.cert_file ({reason})"
    if reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"}:
        return "what listens there does not speak TLS: is it the port of the TLS listener?"
    return f"TLS failed ({reason})"


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its inner errors: pika keeps them in lists and attributes too."""
    waiting, seen = [error], 0
    while waiting and seen < _MOST:
        one = waiting.pop(0)
        seen += 1
        yield one
        inside = [
            one.__cause__,
            getattr(one, "exception", None),
            *(getattr(one, "exceptions", None) or ()),
            *one.args,
            one.__context__,
        ]
        waiting += [more for more in inside if isinstance(more, BaseException)]
