"""Problem documents (RFC 9457): one shape for everything that goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import orjson
import structlog
from starlette.responses import Response

MEDIA_TYPE: Final = "application/problem+json"
BLANK: Final = "about:blank"
RETRY_AFTER_SECONDS: Final = 1


class Problem(Exception):  # noqa: N818 - the word of RFC 9457
    """An answer that is an error.

    `code` makes the stable `type`; without one it is `about:blank`, and the status says all.
    `extra` are further members, `headers` further header fields.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        code: str | None = None,
        title: str | None = None,
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.type = type_of(code)
        self.title = title or HTTPStatus(status).phrase
        self.extra = dict(extra or {})
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """Give the document. The request's correlation id is in it, when there is one."""
        document = {
            "type": self.type,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.extra,
        }
        correlation_id = structlog.contextvars.get_contextvars().get("correlation_id")
        if correlation_id is not None:
            document["correlation_id"] = correlation_id
        return orjson.dumps(document)

    def response(self) -> Response:
        """Give the answer."""
        return Response(
            self.body(), status_code=self.status, media_type=MEDIA_TYPE, headers=self.headers
        )


class BrokenOffError(Exception):
    """An answer has begun and can't be completed, for a reason outside of this program.

    The client learns it from the end of the connection.
    """


def type_of(code: str | None) -> str:
    """Give the `type` of problems with this code."""
    return BLANK if code is None else f"urn:problem-type:tenantry:{code}"


def unavailable(detail: str, *, code: str, extra: Mapping[str, Any] | None = None) -> Problem:
    """Make the 503 that asks to try again."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return Problem(
        503, detail, code=code, title="Unavailable for now", extra=extra, headers=headers
    )


def too_many(detail: str) -> Problem:
    """Make the 429 for a client that asks for too much at once."""
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return Problem(
        429, detail, code="too-many-requests", title="Too many requests", headers=headers
    )


def invalid(problems: Sequence[tuple[str, str]]) -> Problem:
    """Make the 422 that names each field and what is wrong with it."""
    return Problem(
        422,
        "; ".join(f"{field}: {problem}" if field else problem for field, problem in problems),
        code="invalid",
        title="Invalid input",
        extra={"errors": [{"field": field, "problem": problem} for field, problem in problems]},
    )


def former_token() -> Problem:
    """Make the 401 for a token of a former tenant whose id another tenant has now."""
    return Problem(
        401,
        "the token was issued before the tenant was created anew under this id; take a new one",
        headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
    )


def no_such_tenant() -> Problem:
    """Make the 404 for a tenant that does not exist, was deleted, or has no valid id."""
    return Problem(404, "there is no such tenant", code="tenant-not-found", title="No such tenant")
