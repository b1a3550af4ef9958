"""The problem document of each error. Errors of our own making are logged."""

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
    BacklogFullError,
    BrokerBlockedError,
    BrokerError,
    BrokerUnavailableError,
    DeadLettersBusyError,
    MessagesRefusedError,
    NotOursError,
    UnroutableError,
)
from tenantry.control.port import (
    CommandFailedError,
    CommandTimeoutError,
    ControlError,
    ControlUnavailableError,
    ElsewhereError,
)
from tenantry.domain.commands import (
    DomainError,
    InvalidCommandError,
    TenantExistsError,
    TenantNotFoundError,
    WrongStateError,
)
from tenantry.http import problems
from tenantry.http.auth import ELSEWHERE
from tenantry.http.problems import Problem
from tenantry.http.tokens import Principal, Scope
from tenantry.journal.parts import NoSuchPartError, PartsError
from tenantry.journal.port import EventsArchivedError, JournalError, VersionConflictError
from tenantry.messages.port import MessageStoreError, PartitionMissingError
from tenantry.nodes.port import NodeNotFoundError, NodeRefusedError
from tenantry.unavailable import UnavailableError

_log: Final[structlog.stdlib.BoundLogger] = structlog.get_logger(__name__)

BACKLOG_RETRY_SECONDS: Final = 5

_MAX_FIELD: Final = 80
_MAX_PROBLEMS: Final = 10
_DETAILS: Final = {
    404: "nothing is served under this path",
    405: "this path does not take this method",
}


_KINDS: Final[dict[type[Exception], tuple[int, str, str, str]]] = {
    BadCursorError: (400, "bad-cursor", "Bad cursor", "{}"),
    DomainError: (409, "refused", "Refused", "{}"),
    TenantExistsError: (409, "tenant-exists", "The id is taken", "{}"),
    WrongStateError: (409, "wrong-state", "Not in this state", "{}"),
    CommandFailedError: (500, "command-failed", "Command failed", "{}"),
    CommandTimeoutError: (
        *(504, "command-timeout", "No answer in time"),
        "no answer in time; the command may still be carried out: look before trying again",
    ),
    VersionConflictError: (
        *(409, "version-conflict", "Version conflict"),
        "somebody else changed the tenant at the same time; look and try again",
    ),
    EventsArchivedError: (410, "events-archived", "Archived", "{}"),
    PartsError: (409, "journal-parts", "Not as things are", "{}"),
    NoSuchPartError: (404, "no-such-part", "No such part", "{}"),
    NodeNotFoundError: (404, "node-not-found", "No such node", "{}"),
    NodeRefusedError: (409, "node-refused", "Not as things are", "{}"),
    UnroutableError: (
        *(404, "unroutable", "No such topic"),
        "no queue takes the message: its tenant or topic is gone",
    ),
}
"""Status, code, title and detail by kind of error; `{}` stands for the error's message."""

_LATER: Final[dict[type[Exception], tuple[str, str]]] = {
    ControlUnavailableError: ("not-taking-commands", "{}"),
    MessagesRefusedError: ("broker-refused", "{}; try again with the same message ids"),
    BrokerBlockedError: ("broker-unavailable", "{}; try again with the same message ids"),
    BrokerUnavailableError: (
        "broker-unavailable",
        "the broker can't be reached now; try again with the same message ids",
    ),
    UnavailableError: ("database-unavailable", "the database can't be reached now; try again"),
}
"""Code and detail of errors that may go away by themselves."""


def of(error: Exception) -> Problem | None:
    """Give an error's problem document; None for an error that no route should raise."""
    match error:
        case Problem():
            return error
        case HTTPException():
            return _of_http(error)
        case RequestValidationError():
            return _of_validation(error.errors())
        case json.JSONDecodeError():
            return _bad_json(error)
        case TenantNotFoundError() | PartitionMissingError():
            return problems.no_such_tenant()
        case InvalidCommandError():
            return problems.invalid([(error.field, error.problem)])
        case DeadLettersBusyError():
            return Problem(
                409,
                str(error),
                code="dead-letters-busy",
                title="Being worked off",
                headers={"Retry-After": str(problems.RETRY_AFTER_SECONDS)},
            )
        case BacklogFullError():
            return Problem(
                429,
                f"{error}; some may have been taken: try again with the same message ids",
                code="backlog-full",
                title="The backlog is full",
                headers={"Retry-After": str(BACKLOG_RETRY_SECONDS)},
            )
        case ElsewhereError():
            problem = problems.unavailable(str(error), code="not-taking-commands")
            problem.headers[ELSEWHERE] = "?"
            return problem
        case CommandFailedError(__cause__=UnavailableError() as cause):
            return of(cause)
        case CommandFailedError(__cause__=NotOursError()):
            return Problem(
                409, str(error), code="another-installations", title="Another installation's"
            )
    # The most specific class decides.
    for kind in type(error).__mro__:
        if kind in _LATER:
            code, detail = _LATER[kind]
            return problems.unavailable(detail.format(error), code=code)
        if kind in _KINDS:
            status, code, title, detail = _KINDS[kind]
            problem = Problem(status, detail.format(error), code=code, title=title)
            if isinstance(error, WrongStateError):
                problem.extra["state"] = error.state
            return problem
    return None


def archived(error: EventsArchivedError, who: Principal) -> Exception:
    """Describe archived events; where they are is for operators alone."""
    if who.scope is not Scope.TENANT:
        return error
    detail = f"what was recorded by {error.until:%Y-%m-%dT%H:%M:%S.%fZ} is archived"
    return Problem(410, detail, code="events-archived", title="Archived")


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


# Names that pydantic puts into an error's location for a branch of a union, not for a field.
_TAGS: Final = frozenset({"<one>", "<many>", "<some>", "<all>"})


async def answer(request: Request, error: Exception) -> Response:
    """Answer an error with its problem document; an error without one is raised again."""
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = access.methods_of(request.url.path)
        error.headers = {"Allow": ", ".join(allowed)}
    problem = of(error)
    if problem is None:  # the outermost middleware logs it
        raise error
    if problem.status >= 500:
        # Clients repeat a 503 again and again, and the log already says what is away.
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
        NodeNotFoundError,
        NodeRefusedError,
        UnavailableError,  # of any port, and of the database itself
    ):
        app.add_exception_handler(kind, handler)
