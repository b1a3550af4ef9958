"""What each error becomes for the client. What is nobody's fault but ours is logged."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from tenantry.api import access
from tenantry.api.paging import BadCursorError
from tenantry.broker.port import (
    BrokerBlockedError,
    BrokerError,
    BrokerUnavailableError,
    DeadLettersBusyError,
    NotOursError,
    UnroutableError,
)
from tenantry.control.port import (
    CommandFailedError,
    CommandTimeoutError,
    ControlError,
    ControlUnavailableError,
)
from tenantry.domain.commands import (
    DomainError,
    InvalidCommandError,
    TenantExistsError,
    TenantNotFoundError,
    WrongStateError,
)
from tenantry.http import problems
from tenantry.http.problems import Problem
from tenantry.journal.port import JournalError, VersionConflictError
from tenantry.messages.port import (
    MessageStoreError,
    PartitionMissingError,
)
from tenantry.unavailable import UnavailableError

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

_MAX_FIELD: Final = 80
_MAX_PROBLEMS: Final = 10
_DETAILS: Final = {
    404: "nothing is served under this path",
    405: "this path does not take this method",
}


def of(error: Exception) -> Problem | None:
    """Give the problem an error stands for; None for an error that no route should let out."""
    match error:
        case Problem():
            return error
        case HTTPException():
            return _of_http(error)
        case RequestValidationError():
            return _of_validation(error.errors())
        case json.JSONDecodeError():
            return _bad_json(error)
        case BadCursorError():
            return Problem(400, str(error), code="bad-cursor", title="Bad cursor")
        case DomainError():
            return _of_domain(error)
        case ControlError():
            return _of_control(error)
        case BrokerBlockedError():
            return problems.unavailable(
                f"{error}; try again with the same message ids", code="broker-unavailable"
            )
        case BrokerUnavailableError():
            return problems.unavailable(
                "the broker can't be reached now; try again with the same message ids",
                code="broker-unavailable",
            )
        case UnavailableError():
            return problems.unavailable(
                "the database can't be reached now; try again", code="database-unavailable"
            )
        case VersionConflictError():
            return Problem(
                409,
                "somebody else changed the tenant at the same time; look and try again",
                code="version-conflict",
                title="Version conflict",
            )
        case DeadLettersBusyError():
            return Problem(
                409,
                str(error),
                code="dead-letters-busy",
                title="Being worked off",
                headers={"Retry-After": str(problems.RETRY_AFTER_SECONDS)},
            )
        case UnroutableError():
            return Problem(
                404,
                "no queue takes the message: its tenant or topic is gone",
                code="unroutable",
                title="No such topic",
            )
        case PartitionMissingError():
            return problems.no_such_tenant()
        case _:
            return None


def _of_domain(error: DomainError) -> Problem:
    match error:
        case TenantNotFoundError():
            return problems.no_such_tenant()
        case TenantExistsError():
            return Problem(409, str(error), code="tenant-exists", title="The id is taken")
        case WrongStateError():
            return Problem(
                409,
                str(error),
                code="wrong-state",
                title="Not in this state",
                extra={"state": error.state},
            )
        case InvalidCommandError():
            return problems.invalid([(error.field, error.problem)])
        case _:
            return Problem(409, str(error), code="refused", title="Refused")


def _of_control(error: ControlError) -> Problem | None:
    match error:
        case ControlUnavailableError():
            return problems.unavailable(str(error), code="not-taking-commands")
        case CommandTimeoutError():
            return Problem(
                504,
                "no answer in time; the command may still be carried out: look before trying again",
                code="command-timeout",
                title="No answer in time",
            )
        case CommandFailedError():
            cause = error.__cause__
            if isinstance(cause, NotOursError):
                return Problem(
                    409, str(error), code="another-installations", title="Another installation's"
                )
            away = of(cause) if isinstance(cause, UnavailableError) else None
            return away or Problem(500, str(error), code="command-failed", title="Command failed")
        case _:
            return None


def _of_http(error: HTTPException) -> Problem:
    detail = _DETAILS.get(error.status_code) or str(error.detail)
    return Problem(error.status_code, detail, headers=error.headers)


def _bad_json(error: json.JSONDecodeError) -> Problem:
    detail = f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
    return Problem(400, detail, code="bad-json", title="Not JSON")


def _of_validation(errors: Sequence[Any]) -> Problem:
    for error in errors:
        if error["type"] == "json_invalid":
            detail = f"the body is not JSON: {error['ctx']['error']} (at {error['loc'][-1]})"
            return Problem(400, detail, code="bad-json", title="Not JSON")
    return problems.invalid([_readable(error) for error in errors[:_MAX_PROBLEMS]])


def _readable(error: Any) -> tuple[str, str]:
    place, *path = error["loc"]
    field = ""
    for part in path:
        if isinstance(part, int):
            field += f"[{part}]"
        elif part not in _TAGS:
            field += f".{part}" if field else str(part)
    field = "".join(char if char.isprintable() else "?" for char in field[:_MAX_FIELD])
    if error["type"] == "extra_forbidden":
        return field, "there is no such field" if place == "body" else "there is no such parameter"
    if error["type"] == "missing":
        return field or place, "is required"
    problem = str(error["msg"])
    problem = problem.removeprefix("Value error, ").removeprefix("Input should be ")
    if problem != error["msg"] and error["type"] != "value_error":
        problem = f"must be {problem}"
    return field or place, problem


# Names pydantic puts into the place of an error for a branch of a union, not for a field.
_TAGS: Final = frozenset({"<one>", "<many>", "<some>", "<all>"})


async def answer(request: Request, error: Exception) -> Response:
    """Answer an error with its problem document; an error without one is raised again."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = access.methods_of(request.url.path)
        error.headers = {"Allow": ", ".join(allowed)}
    problem = of(error)
    if problem is None:  # to the outermost middleware, which logs it
        raise error
    if problem.status >= 500:
        # A 503 is asked for again and again, and what is away is in the log already.
        _log.log(
            logging.DEBUG if problem.status == 503 else logging.WARNING,
            "api.request_failed",
            method=request.method,
            path=request.url.path,
            status=problem.status,
            problem=problem.type,
            error=str(error),
        )
    return problem.response()


def install(app: FastAPI) -> None:
    """Answer every error of `app` with a problem document."""
    handler: Callable[[Request, Any], Awaitable[Response]] = answer
    for kind in (
        Problem,
        HTTPException,
        RequestValidationError,
        json.JSONDecodeError,
        BadCursorError,
        DomainError,
        ControlError,
        JournalError,
        MessageStoreError,
        BrokerError,
    ):
        app.add_exception_handler(kind, handler)
