"""The settings: sections, types, ranges, defaults, and values derived from them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_core import PydanticCustomError

from tenantry.settings import values
from tenantry.settings.values import (
    Audience,
    File,
    FileName,
    FilePath,
    HandlerName,
    Interval,
    Port,
    Seconds,
    Topic,
)
from tenantry.unixpath import MAX_SOCKET_PATH
from tenantry.urls import AMQP, address, alternatives, split

SCOPE_CLAIM: Final = "scope"
MAX_SECRETS: Final = 10
"""A bad token is checked with each secret, so there must not be many."""

MANAGEMENT_PORT: Final = 15672
CONTROL_SOCKET: Final = "control.sock"
DEFAULT_STATE_DIR: Final = "~/.local/state/tenantry"


class _Section(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(
        frozen=True, extra="forbid", strict=True, hide_input_in_errors=True
    )


class Broker(_Section):
    """Where the broker is, of any kind; if `url` is empty, `rabbitmq.url` applies.

    `ca_file`, a PEM file, is the authority that is trusted instead of the system's.
    """

    url: Annotated[SecretStr, AfterValidator(values.broker_url)] = SecretStr("")
    ca_file: File = ""


class RabbitMQ(_Section):
    """Where RabbitMQ is. Both URLs may hold a password; an empty `url` is the embedded broker.

    Each may name several nodes of a cluster, as HOST:PORT with commas between: after a node that
    fails the next is tried.

    The files are PEM: the authority that is trusted instead of the system's, and the daemon's own
    certificate with its key.
    """

    url: Annotated[SecretStr, AfterValidator(values.amqp_url)] = SecretStr("")
    management_url: Annotated[SecretStr, AfterValidator(values.http_url)] = SecretStr("")
    ca_file: File = ""
    cert_file: File = ""
    key_file: File = ""

    @model_validator(mode="after")
    def _key_with_certificate(self) -> Self:
        if self.key_file and not self.cert_file:
            raise PydanticCustomError(
                "tls", "is missing beside rabbitmq.key_file", {"key": "rabbitmq.cert_file"}
            )
        return self


class Database(_Section):
    """Where PostgreSQL is; an empty `url` is the embedded server in `state_dir`."""

    url: Annotated[SecretStr, AfterValidator(values.postgres_url)] = SecretStr("")
    pool_size: int = Field(default=20, ge=2, le=500)


def _node_name(value: str) -> str:
    if value and not re.fullmatch(
        r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", value, re.ASCII
    ):
        raise PydanticCustomError(
            "node", "must be 1 to 63 of letters, digits, dots, hyphens and underscores"
        )
    return value


class Node(_Section):
    """The daemon as a node among those at work on one database.

    An empty `name` is the host's; `weight` is the node's share relative to the others'. A `standby`
    only waits until no other node is at work. `address` is the URL of its API for nodes on other
    machines.
    """

    name: Annotated[str, AfterValidator(_node_name)] = ""
    weight: float = Field(default=1.0, ge=0.01, le=1000, allow_inf_nan=False)
    standby: bool = False
    address: Annotated[str, AfterValidator(values.api_address)] = ""


class Server(_Section):
    """Where the HTTP API listens on TCP; with both files it is HTTPS. Port 0 is any free port.

    `public_url` is where browsers reach it, perhaps through a proxy, with the proxy's prefix.
    """

    host: str = Field(default="127.0.0.1", min_length=1, max_length=253)
    port: Port = 8080
    public_url: Annotated[str, Field(max_length=500), AfterValidator(values.public_url)] = ""
    tls_cert: FileName = ""
    tls_key: FileName = ""

    @model_validator(mode="after")
    def _both_or_none(self) -> Self:
        if bool(self.tls_cert) != bool(self.tls_key):
            missing = "tls_key" if self.tls_cert else "tls_cert"
            raise PydanticCustomError(
                "tls", "certificate and key are needed", {"key": f"server.{missing}"}
            )
        return self

    @property
    def tls(self) -> tuple[Path, Path] | None:
        """The files of the certificate (with its chain) and of its key."""
        if not self.tls_cert:
            return None
        # Without a home a `~` stays: then no such file is found, which the error says.
        return Path(os.path.expanduser(self.tls_cert)), Path(os.path.expanduser(self.tls_key))  # noqa: PTH111

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return values.is_loopback(self.host)


class Control(_Section):
    """Where the control socket is, if not in `state_dir`."""

    socket: FilePath | None = None


class Metrics(_Section):
    """A port on 127.0.0.1 for `/metrics` without a token, or None."""

    port: Annotated[Port | None, BeforeValidator(values.empty_is_none)] = None


Rights: TypeAlias = Literal[
    "admin", "operate", "operate payloads", "read", "read payloads", "payloads", "tenant"
]


class Security(_Section):
    """Which tokens are accepted: the daemon's own, and those of an identity provider.

    Of the daemon's own secrets the first signs, all verify. The provider's keys are at `jwks_url`;
    `jwks_ca_file` is the authority that is trusted there instead of the system's. `scopes` maps
    values of its tokens' `scope_claim` to rights here. Without a secret and a provider there are no
    tokens, and HTTP is on loopback only.
    """

    jwt_secret: Annotated[
        tuple[SecretStr, ...],
        BeforeValidator(values.one_or_several),
        AfterValidator(values.secrets),
    ] = Field(default=(), max_length=MAX_SECRETS)

    jwks_url: Annotated[str, AfterValidator(values.jwks_url)] = ""
    jwks_ca_file: File = ""
    issuer: str = Field(default="", max_length=1024)
    audience: Annotated[tuple[Audience, ...], BeforeValidator(values.one_or_several)] = Field(
        default=(), max_length=20
    )
    scope_claim: str = Field(default=SCOPE_CLAIM, min_length=1, max_length=200)
    tenant_claim: str = Field(default="tenant_id", min_length=1, max_length=200)
    scopes: dict[str, Rights] = Field(default_factory=dict, max_length=200)

    @model_validator(mode="after")
    def _whose_tokens(self) -> Self:
        """Require issuer and audience: a provider's tokens for other services are not for this."""
        for key, value in (("issuer", self.issuer), ("audience", self.audience)):
            if self.jwks_url and not value:
                raise PydanticCustomError(
                    "provider",
                    "is missing beside security.jwks_url: whose tokens, and for which service",
                    {"key": f"security.{key}"},
                )
            if value and not self.jwks_url:
                raise PydanticCustomError(
                    "provider",
                    "is for tokens of a provider, and security.jwks_url is not set",
                    {"key": f"security.{key}"},
                )
        if self.jwks_url and self.scope_claim != SCOPE_CLAIM and not self.scopes:
            raise PydanticCustomError(
                "provider",
                "is missing beside security.scope_claim: which of its values gives which rights",
                {"key": "security.scopes"},
            )
        return self

    @property
    def takes_tokens(self) -> bool:
        """Whether a call on TCP needs a token."""
        return bool(self.jwt_secret or self.jwks_url)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The secrets in plain text."""
        return tuple(one.get_secret_value() for one in self.jwt_secret)


class Oidc(_Section):
    """Login to the page through the provider of `security.issuer`; none without `client_id`.

    `client_id` and `client_secret` identify this service at the provider, `scopes` are those it
    asks for. A session lasts `session_seconds` at most, and no longer than the provider's token.
    """

    client_id: Annotated[str, Field(max_length=500), AfterValidator(values.client_id)] = ""
    client_secret: Annotated[SecretStr, AfterValidator(values.client_secret)] = SecretStr("")
    scopes: Annotated[str, Field(max_length=500), AfterValidator(values.login_scopes)] = "openid"
    session_seconds: float = Field(default=28_800.0, ge=60, le=604_800, allow_inf_nan=False)


class Shutdown(_Section):
    """How long a graceful shutdown may take, in seconds."""

    deadline_seconds: Seconds = 30.0


class Retry(_Section):
    """How often a failing message is tried, and the pauses between; the last pause repeats."""

    attempts: int = Field(default=5, ge=1, le=100)
    backoff_seconds: Annotated[
        tuple[Seconds, ...], BeforeValidator(lambda v: tuple(v) if isinstance(v, list) else v)
    ] = Field(default=(0.1, 1.0, 5.0, 30.0), min_length=1, max_length=100)


class Handling(_Section):
    """How long a handler may take for a message, and how many run at once, all tenants together."""

    timeout_seconds: float = Field(default=30.0, ge=0.1, le=3600, allow_inf_nan=False)
    connections: int = Field(default=10, ge=1, le=100)


class Queue(_Section):
    """What kind of queue a tenant gets."""

    type: Literal["quorum", "classic"] = "quorum"


class Consumer(_Section):
    """How deliveries are consumed: how many may be unsettled, a batch's size and its linger.

    `prefetch` counts a tenant's messages, `prefetch_bytes` their bytes; `prefetch_bytes_total`
    those of all tenants together. A backlog beside quiet tenants is stored in batches of
    `batch_size_beside_others`, unless `batch_size` is smaller. `stored_at_once` is the least number
    of full batches stored at a time while tenants compete; 0 for no turns.
    """

    prefetch: int = Field(default=4000, ge=1, le=65535)
    prefetch_bytes: int = Field(default=32 * 2**20, ge=2**20, le=2**40)
    prefetch_bytes_total: int = Field(default=256 * 2**20, ge=2**20, le=2**40)
    batch_size: int = Field(default=1000, ge=1, le=5000)
    batch_size_beside_others: int = Field(default=100, ge=1, le=65535)
    linger_ms: float = Field(default=5.0, ge=0, le=60000, allow_inf_nan=False)
    stored_at_once: float = Field(default=4.0, ge=0, le=1000, allow_inf_nan=False)


class Supervision(_Section):
    """How long an actor, or a loop that all depend on, may be silent before it is replaced."""

    hang_seconds: float = Field(default=60.0, ge=1, le=3600, allow_inf_nan=False)


class Reconcile(_Section):
    """How often tenants' objects are compared with what they should be."""

    every_seconds: float = Field(default=60.0, ge=1, le=86400, allow_inf_nan=False)


class Audit(_Section):
    """How often the daemon audits all tenants by itself, in seconds; 0 is never."""

    every_seconds: Interval = 3600.0


class Isolation(_Section):
    """How often the daemon proves the tenants' isolation by itself, in seconds; 0 is never."""

    verify_every_seconds: Interval = 0.0


class Tracing(_Section):
    """Where spans go, by OTLP over HTTP; without an `endpoint` there are none.

    `sample_ratio` applies to traces without a caller's decision. `headers` go along with each
    request, as in name=value,other=value.
    """

    endpoint: Annotated[str, AfterValidator(values.collector_url)] = ""
    headers: Annotated[SecretStr, AfterValidator(values.header_list)] = SecretStr("")
    sample_ratio: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    service_name: str = Field(default="tenantry", min_length=1, max_length=200)
    timeout_seconds: float = Field(default=5.0, ge=0.1, le=60, allow_inf_nan=False)

    @property
    def header_table(self) -> dict[str, str]:
        """The headers by name, in plain text."""
        return dict(values.headers(self.headers.get_secret_value()))


class Log(_Section):
    """How much is logged, and how; `auto` is coloured on a terminal and JSON elsewhere."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Settings(_Section):
    """The whole configuration. Secrets are masked in every repr and dump."""

    broker: Broker = Broker()
    rabbitmq: RabbitMQ = RabbitMQ()
    database: Database = Database()
    node: Node = Node()
    state_dir: FilePath = Field(
        default_factory=lambda: Path(os.path.expanduser(DEFAULT_STATE_DIR))  # noqa: PTH111
    )
    workers: int = Field(default=3, ge=1, le=64)
    processes: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = 1
    server: Server = Server()
    control: Control = Control()
    metrics: Metrics = Metrics()
    security: Security = Security()
    oidc: Oidc = Oidc()
    shutdown: Shutdown = Shutdown()
    retry: Retry = Retry()
    handler: Handling = Handling()
    handlers: dict[Topic, HandlerName] = Field(default_factory=dict)
    queue: Queue = Queue()
    consumer: Consumer = Consumer()
    supervision: Supervision = Supervision()
    reconcile: Reconcile = Reconcile()
    audit: Audit = Audit()
    isolation: Isolation = Isolation()
    tracing: Tracing = Tracing()
    log: Log = Log()

    @model_validator(mode="after")
    def _socket_fits(self) -> Self:
        # A path in `state_dir` may be longer: the daemon and its commands open its directory first.
        size = 0 if self.control.socket is None else len(os.fsencode(self.control.socket))
        if size > MAX_SOCKET_PATH:
            raise PydanticCustomError(
                "socket",
                f"the control socket's path would be {size} bytes long and may have "
                f"{MAX_SOCKET_PATH}: choose a shorter one",
                {"key": "control.socket"},
            )
        return self

    @model_validator(mode="after")
    def _one_broker(self) -> Self:
        given = self.broker.url.get_secret_value(), self.rabbitmq.url.get_secret_value()
        if all(given) and given[0] != given[1]:
            raise PydanticCustomError(
                "broker", "names another broker than rabbitmq.url: set one", {"key": "broker.url"}
            )
        return self

    @model_validator(mode="after")
    def _login_is_whole(self) -> Self:
        if not self.oidc.client_id:
            if self.oidc.client_secret.get_secret_value():
                raise PydanticCustomError(
                    "login", "is missing beside oidc.client_secret", {"key": "oidc.client_id"}
                )
            return self
        for key, value, what in (
            ("security.jwks_url", self.security.jwks_url, "the keys of who logs people in"),
            ("security.jwt_secret", self.security.jwt_secret, "it signs their sessions"),
            ("server.public_url", self.server.public_url, "where they come back to"),
        ):
            if not value:
                raise PydanticCustomError(
                    "login", f"is missing beside oidc.client_id: {what}", {"key": key}
                )
        try:
            values.jwks_url(self.security.issuer)
        except PydanticCustomError:
            raise PydanticCustomError(
                "login",
                "must be a URL by https, beside oidc.client_id: it is asked where to log in",
                {"key": "security.issuer"},
            ) from None
        return self

    @property
    def process_count(self) -> int:
        """How many processes are to run; `auto` means one for each usable core."""
        if self.processes == "auto":
            return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        return self.processes

    @property
    def broker_url(self) -> SecretStr:
        """The broker's URL, which may hold a password; empty: the embedded broker."""
        return self.broker.url if self.broker.url.get_secret_value() else self.rabbitmq.url

    @property
    def broker_ca_file(self) -> str:
        """The authority of the broker's certificate; if empty, the system's are trusted."""
        return self.broker.ca_file or self.rabbitmq.ca_file

    @property
    def control_socket(self) -> Path:
        """The control socket's path."""
        return self.control.socket or self.state_dir / CONTROL_SOCKET

    @property
    def postgres_dir(self) -> Path:
        """The embedded PostgreSQL's directory."""
        return self.state_dir / "postgres"

    @property
    def management_url(self) -> SecretStr | None:
        """The URL of RabbitMQ's management API, with the AMQP user if it names none.

        None with another broker.
        """
        amqp = split(self.broker_url.get_secret_value())
        if not amqp.hostname or amqp.scheme not in AMQP:
            return None
        userinfo = amqp.netloc.rpartition("@")[0] or "guest:guest"
        given = self.rabbitmq.management_url.get_secret_value()
        if not given:
            scheme = "https" if amqp.scheme == "amqps" else "http"
            hosts = (urlsplit(one).hostname or "" for one in alternatives(amqp.geturl()))
            place = ",".join(address(host, MANAGEMENT_PORT) for host in hosts)
            return SecretStr(f"{scheme}://{userinfo}@{place}")
        url = split(given)
        if "@" not in url.netloc:
            url = url._replace(netloc=f"{userinfo}@{url.netloc}")
        return SecretStr(urlunsplit(url).rstrip("/"))
