"""A tenant's credentials: how they are shown, once."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from tenantry.api.schemas.common import Answer
from tenantry.broker.port import Credentials
from tenantry.control.port import Outcome


class AccessData(Answer):
    """A tenant's credentials for the broker, shown this once, with a URL for its kind."""

    username: str = Field(examples=["tenant_acme_producer"])
    password: str = Field(examples=["mU3q…"])
    amqp_url: str | None = Field(
        default=None,
        description="Where the broker is RabbitMQ.",
        examples=["amqp://tenant_acme_producer:…@localhost:5672/"],
    )
    postgres_url: str | None = Field(
        default=None,
        description="Where the broker is the embedded one: publish with tenantry.publish().",
        examples=["postgresql://tenant_acme_producer:…@localhost:5432/tenantry"],
    )
    iggy_url: str | None = Field(
        default=None,
        description="Where the broker is Apache Iggy.",
        examples=["iggy://tenant_acme_producer:…@localhost:8090"],
    )

    @classmethod
    def of(cls, made: Credentials) -> Self:
        """Show the credentials of a tenant's broker user."""
        urls = {name: getattr(made, name) for name in ("amqp_url", "postgres_url", "iggy_url")}
        url = {name: value for name, value in urls.items() if value}
        return cls(username=made.username, password=made.password, **url)


class SqlAccessData(Answer):
    """A tenant's credentials to read its rows with SQL. The password is shown this once."""

    tenant_id: str = Field(examples=["acme"])
    username: str = Field(examples=["tenant_acme_sql_16384"])
    password: str = Field(examples=["mU3q…"])
    url: str = Field(examples=["postgresql://tenant_acme_sql_16384:…@db.example.org:5432/tenantry"])

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        """Show the credentials of a database role, this once."""
        made = outcome.sql_credentials
        if made is None:
            raise RuntimeError("a grant of SQL access came back without credentials")
        return cls.made_of(made, tenant_id=outcome.tenant.tenant_id)
