"""The error answers of a route, as the OpenAPI document tells them."""

from __future__ import annotations

from typing import Any, Final

from tenantry.http.problems import MEDIA_TYPE, type_of

PROBLEM_REF: Final = "#/components/schemas/ProblemDocument"

_MEANINGS: Final = {
    400: "The body is not JSON, or the cursor is not one of this list.",
    401: "No token, or a bad one (TCP only).",
    403: "The token is not good for this (TCP only).",
    404: "There is no such tenant or topic.",
    408: "The body did not arrive in time.",
    409: "The tenant's present state does not allow this, or the id is taken.",
    413: "The body is too large.",
    415: "The body is not sent as application/json.",
    422: "Invalid input; `errors` names each field.",
    429: "Too much at once from this client. Try again.",
    500: "An error of the server's own, or a step of the command failed.",
    503: "Not now: starting, draining, or a service is away. Try again.",
    504: "No answer in time; the command may still be carried out.",
}

_EXAMPLES: Final = {
    400: ("bad-cursor", "Bad cursor", "the cursor is not one that this list gave out"),
    401: (None, "Unauthorized", "the token has expired"),
    403: (None, "Forbidden", "the token is for another tenant"),
    404: ("tenant-not-found", "No such tenant", "there is no such tenant"),
    408: (None, "Request Timeout", "the body did not arrive within 30 seconds"),
    409: ("wrong-state", "Not in this state", "tenant 'acme' is deleting and can't be paused"),
    413: (None, "Content Too Large", "the body is larger than 1048576 bytes"),
    415: (None, "Unsupported Media Type", "send the body with Content-Type: application/json"),
    422: ("invalid", "Invalid input", "workers: must be less than or equal to 64"),
    429: ("too-many-requests", "Too many requests", "a client may have 256 requests at once"),
    500: (None, "Internal Server Error", "an error of the server's own; its log tells more"),
    503: ("not-taking-commands", "Unavailable for now", "the daemon is draining"),
    504: ("command-timeout", "No answer in time", "the command may still be carried out"),
}
"""Of each status: code, title and detail."""

_ALWAYS: Final = (500, 503)
_WITH_TOKENS: Final = (401, 403, 429)
_WITH_BODY: Final = (400, 408, 413, 415, 422)


def errors(*statuses: int, body: bool = False, public: bool = False) -> dict[int | str, Any]:
    """Give the `responses` of a route that may fail in these ways, beside the usual ones."""
    all_of_them = {*statuses, *_ALWAYS}
    all_of_them |= set(() if public else _WITH_TOKENS) | set(_WITH_BODY if body else ())
    return {
        status: {
            "description": _MEANINGS[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": PROBLEM_REF}, "example": _example(status)}},
        }
        for status in sorted(all_of_them)
    }


def _example(status: int) -> dict[str, Any]:
    code, title, detail = _EXAMPLES[status]
    document: dict[str, Any] = {
        "type": type_of(code), "title": title, "status": status, "detail": detail
    }  # fmt: skip
    if status == 422:
        field, _, problem = detail.partition(": ")
        document["errors"] = [{"field": field, "problem": problem}]
    return document | {"correlation_id": "4a644fdfc7ba4c4daeaf84a122772ce3"}
