"""Requests made up from the OpenAPI document, good and bad, and what every answer must be.

Schemathesis is loaded where requests are made up: each process of a run collects all tests.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import hypothesis
from hypothesis import HealthCheck, Phase

from tenantry.api import access
from tenantry.api.access import TABLE
from tenantry.http.problems import MEDIA_TYPE
from tests.depth import THOROUGH
from tests.waiting import DEADLINE

if TYPE_CHECKING:
    import requests

CONFORMANCE = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
)
UNDESCRIBED = {"/openapi.json", "/docs", "/swagger/{asset}"}
OPERATIONS = sorted(
    f"{method} {access.shown(path)}" for method, path in TABLE if path not in UNDESCRIBED
)
ENDING = {"POST /stop", "POST /drain"}
"""What a running daemon is not asked to do."""

MODES = ("good", "bad")
_SERVERS_OWN = {500}


@dataclass(slots=True)
class Api:
    """An API that is being served, and how often it answered what."""

    url: str
    schema: Any
    session: requests.Session
    answers: Counter[tuple[str, int]] = field(default_factory=Counter)

    def operation(self, name: str) -> Any:
        method, path = name.split(" ", 1)
        return self.schema[path][method]

    def can_be_wrong(self, name: str) -> bool:
        """Tell whether there is anything in an operation's requests but text in its path."""
        method, path = name.split(" ", 1)
        described = self.schema.raw_schema["paths"][path][method.lower()]
        return "requestBody" in described or any(
            one["in"] != "path" or one["schema"].get("type") != "string"
            for one in described.get("parameters", ())
        )


@functools.cache
def _conformance() -> list[Any]:
    import schemathesis
    from schemathesis.checks import CHECKS

    schemathesis.checks.load_all_checks()
    return [CHECKS.get_one(name) for name in CONFORMANCE]


def load(url: str) -> Api:
    import requests
    import schemathesis

    session = requests.Session()
    session.trust_env = False
    document = session.get(f"{url}/openapi.json", timeout=DEADLINE).json()
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=url)
    return Api(url=url, schema=schema, session=session)


def attack(
    api: Api,
    operation: str,
    mode: str,
    *,
    examples: int,
    tenants: tuple[str, ...] = (),
    headers: Callable[[], Mapping[str, str]] = dict,
) -> None:
    """Send made-up requests of an operation, good or bad; every third names one of `tenants`."""
    from schemathesis import GenerationMode

    if mode == "bad" and not api.can_be_wrong(operation) and not THOROUGH:
        return  # it would be looked for in vain, and longer than all that is found
    wanted = GenerationMode.NEGATIVE if mode == "bad" else GenerationMode.POSITIVE
    try:
        strategy = api.operation(operation).as_strategy(generation_mode=wanted)
    except Exception as error:
        raise AssertionError(f"{operation} can't be made up: {error}") from error
    sent = 0

    @hypothesis.settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=strategy)
    def run(case: Any) -> None:
        nonlocal sent
        sent += 1
        if tenants and sent % 3:
            _name(case, tenants[sent % len(tenants)])
        answer = case.call(session=api.session, headers=dict(headers()), timeout=DEADLINE)
        api.answers[operation, answer.status_code] += 1
        case.validate_response(answer, checks=_conformance())
        check(answer.status_code, answer.headers, answer.content)

    try:
        run()
    except hypothesis.errors.Unsatisfiable:
        assert mode == "bad", operation
        assert not api.can_be_wrong(operation), operation


def _name(case: Any, tenant_id: str) -> None:
    for place in (case.path_parameters, case.query):
        if place and "tenant_id" in place:
            place["tenant_id"] = tenant_id


def check(status: int, headers: Mapping[str, Any], content: bytes) -> None:
    """Hold an answer to what is true of all: problem documents, and nothing from inside."""
    for inside in (b"Traceback", b'File "', b"psycopg", b"pika."):
        assert inside not in content
    assert status not in _SERVERS_OWN
    if status >= 400:
        kind = headers["content-type"]
        kind = kind[0] if isinstance(kind, list) else kind
        assert kind == MEDIA_TYPE
        problem = json.loads(content)
        assert problem["status"] == status
        assert problem["title"]
        assert problem["type"]
