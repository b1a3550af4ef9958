"""A tenant's credentials and topics on the page: given, renewed, taken away; added."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tenantry.http.tokens import Scope
from tests.api.page import Browser, Written, refuse_what_a_strict_policy_would_stop, token
from tests.api.serving import SECRET, Served, World, serving

EVIL = "<script>alert(1)</script>'\"&"
PASSWORD = "<code>shown once</code>"
ACME = "/ui/tenants/acme"


@pytest.fixture(scope="module")
def api() -> Iterator[Served]:
    with serving(World(jwt_secret=SECRET)) as served:
        served.world.create("acme", name=EVIL, topics=("logs",), partitions=3)
        yield served


@pytest.fixture
def admin(api: Served) -> Browser:
    return Browser(api, token())


def said(page: str) -> str:
    return " ".join(Written(page).text.split())


def kinds(api: Served) -> list[str]:
    return [type(one.event).__name__ for one in api.world.journal.read_all()]


@pytest.mark.parametrize(
    ("form", "warning", "event"),
    [
        ("rotate", "is good no more", "CredentialsRotated"),
        ("consumer-access", "reads copies of what is published", "ConsumerAccessGranted"),
        ("sql-access", "reads its own rows of messages", "SqlAccessGranted"),
    ],
)
def test_a_password_is_made_when_that_is_confirmed_and_stands_in_no_address(
    api: Served, admin: Browser, form: str, warning: str, event: str
) -> None:
    path, before = f"{ACME}/{form}", len(api.world.control.metadata)
    asked = admin.send(path)
    assert warning in said(asked.text)
    assert len(api.world.control.metadata) == before
    done = admin.send(path, confirmed="yes")
    assert (done.status_code, done.headers["cache-control"]) == (200, "no-store")
    assert "location" not in done.headers
    assert PASSWORD in done.text
    assert kinds(api)[-1] == event
    assert api.world.control.metadata[-1].actor == "ann"
    for page in (asked, done):
        refuse_what_a_strict_policy_would_stop(page.text)
    assert admin.get(path).status_code == 405
    assert admin.send(f"/ui/tenants/nobody/{form}", confirmed="yes").status_code == 404
    assert PASSWORD not in admin.get(f"{ACME}/credentials").text


@pytest.mark.parametrize("kind", ["consumer", "sql"])
def test_access_is_taken_away_when_that_is_confirmed(
    api: Served, admin: Browser, kind: str
) -> None:
    path = f"{ACME}/{kind}-access"
    admin.send(path, confirmed="yes")
    offered = admin.get(f"{ACME}/credentials")
    assert f"../../../ui/tenants/acme/{kind}-access/revoke" in Written(offered.text).actions()
    granted = kinds(api)[-1]
    assert "Revoke the" in said(admin.send(f"{path}/revoke").text)
    assert kinds(api)[-1] == granted
    done = admin.send(f"{path}/revoke", confirmed="yes")
    led = done.url.join(done.headers["location"])
    assert led.path == f"{ACME}/credentials"
    assert kinds(api)[-1] == granted.replace("Granted", "Revoked")
    assert "The tenant has no" in said(admin.get(led.path, **led.params).text)


def test_only_administrators_come_to_credentials_and_topics(api: Served) -> None:
    for session in (
        token(scope=Scope.READ, payloads=True), token(scope=Scope.OPERATE), token("acme"),
    ):  # fmt: skip
        viewer = Browser(api, session)
        tenant = viewer.get(ACME)
        for path in ("credentials", "topics"):
            assert viewer.get(f"{ACME}/{path}").status_code == 403
            assert not any(one.endswith(f"/{path}") for one in Written(tenant.text).links())


def test_topics_are_added_as_they_are_written_on_the_command_line(
    api: Served, admin: Browser
) -> None:
    done = admin.send(f"{ACME}/topics", topics=" events, orders:2:ordered ")
    led = done.url.join(done.headers["location"])
    assert led.path == f"{ACME}/topics"
    told = said(admin.get(led.path, **led.params).text)
    assert "The topics are there." in told
    for row in ("logs 3 none", "events 3 none", "orders 2 partition"):
        assert row in told
    assert api.world.control.metadata[-1].actor == "ann"


@pytest.mark.parametrize(
    ("typed", "status", "told"),
    [
        ("", 422, "topics: "),
        ("a:b:c", 422, "is no topic"),
        (EVIL, 422, "Not added:"),
        ("logs:2", 422, "logs"),
        ('"' * 20_000, 422, "Not added:"),
    ],
    ids=["nothing", "no topic", "markup", "another number of partitions", "large"],
)
def test_what_can_be_no_topic_is_told_on_the_form_and_what_was_typed_is_kept(
    api: Served, admin: Browser, typed: str, status: int, told: str
) -> None:
    before = len(api.world.journal.read_all())
    answer = admin.send(f"{ACME}/topics", topics=typed)
    assert answer.status_code == status
    assert told in said(answer.text)
    assert len(answer.content) < 80_000
    assert len(api.world.journal.read_all()) == before
    refuse_what_a_strict_policy_would_stop(answer.text)
    kept = [given["value"] for _, given in Written(answer.text).elements if "value" in given]
    assert kept == [typed if len(typed) < 1000 else ""]
