"""Dead letters over the control socket; and what a break at each step of a replay leaves behind."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from tenantry.api.routes import dead_letters as routes
from tenantry.broker.port import BrokerError, BrokerUnavailableError, Outgoing
from tenantry.dead_letters.port import EVERYTHING
from tenantry.domain.events import DeadLettersDiscarded, DeadLettersReplayed
from tenantry.http.pool import Pool
from tenantry.journal.port import Metadata
from tenantry.messages.headers import OUT_OF_ORDER_HEADER, REPLAY_HEADER, REPLAYS_HEADER
from tests.api.dead_letters import discard, listed, message, queued, reject, replay
from tests.api.serving import Served, World, serving
from tests.waiting import DEADLINE, eventually


@pytest.fixture
def api() -> Iterator[Served]:
    with serving(World()) as served:
        served.world.create("acme", topics=("logs",), partitions=2)
        yield served


def test_dead_letters_are_listed_with_why_and_their_bytes(api: Served) -> None:
    ids = reject(api.world, message("m-1", b"\x00\xff", headers={"n": 1}), message(None))
    first, second = listed(api)
    assert (first["id"], first["message_id"], first["letter_id"]) == ("m-1", "m-1", str(ids[0]))
    assert (first["topic"], first["partition"], first["size"]) == ("logs", 1, 2)
    assert (first["reason"], first["error"], first["attempts"]) == ("not_json", "no JSON", 1)
    assert base64.b64decode(first["body"]) == b"\x00\xff"
    assert first["headers"] == {"n": 1}
    assert (second["id"], second["message_id"]) == (str(ids[1]), None)


def test_a_dead_letter_of_a_partition_in_order_is_marked_and_so_is_its_replay(api: Served) -> None:
    orders = {"topics": [{"name": "orders", "ordering": "partition"}]}
    api.control.post("/tenants/acme/topics", json=orders)
    reject(api.world, message("1", topic="orders", partition=0), message("2"))
    assert [one["ordered"] for one in listed(api)] == [True, False]
    replaying = api.world.reprocessing(ordered=lambda _tenant_id: {"orders"})
    replaying.replay("acme", EVERYTHING, Metadata(actor="test"))
    marks = [(one.headers or {}).get(OUT_OF_ORDER_HEADER) for one in api.world.publishing.sent]
    assert marks == [True, None]


def test_pages_of_dead_letters_follow_each_other(api: Served) -> None:
    reject(api.world, *[message(str(number)) for number in range(5)])
    seen, url = [], "/tenants/acme/dead-letters?limit=2"
    while url:
        answer = api.control.get(url)
        page = answer.json()
        seen += [one["id"] for one in page["data"]]
        link = answer.headers.get("link", "")
        assert bool(link) == bool(page["next_cursor"])
        url = link.partition(">")[0].lstrip("<")
    assert seen == ["0", "1", "2", "3", "4"]


def test_a_replay_publishes_the_message_to_where_it_came_from(api: Served) -> None:
    original = message("m-1", b"bytes", headers={"n": 1.5}, published_at_ms=1_700_000_000_123)
    ids = reject(api.world, original, message(None, topic="default", partition=0))
    assert replay(api, {"all": True}) == {"replayed": 2}
    assert api.world.publishing.sent == [
        Outgoing(
            exchange="tenant_acme_stream",
            routing_key="logs.1",
            body=b"bytes",
            message_id="m-1",
            content_type="application/json",
            headers={REPLAY_HEADER: str(ids[0]), REPLAYS_HEADER: 1},
            properties=b"as they were",
        ),
        Outgoing(
            exchange="tenant_acme_stream",
            routing_key="default",
            body=b"bad",
            message_id=str(ids[1]),
            content_type="application/json",
            headers={REPLAY_HEADER: str(ids[1]), REPLAYS_HEADER: 1},
            properties=b"as they were",
        ),
    ]
    assert api.world.dead_letters.queues["acme"] == []
    assert listed(api) == []
    assert replay(api, {"all": True}) == {"replayed": 0}


def test_some_are_replayed_by_either_id(api: Served) -> None:
    ids = reject(api.world, *[message(str(number)) for number in range(4)], message("3", b"other"))
    assert replay(api, {"ids": ["1", str(ids[2]), "3", "unknown"]}) == {"replayed": 4}
    assert [one.message_id for one in api.world.publishing.sent] == ["1", "2", "3", "3"]
    assert [one["id"] for one in listed(api)] == ["0"]
    assert replay(api, {"ids": ["1"]}) == {"replayed": 0}


def test_discarded_letters_are_gone(api: Served) -> None:
    reject(api.world, *[message(str(number)) for number in range(3)])
    assert discard(api, {"ids": ["1"]}) == {"discarded": 1}
    assert [one["id"] for one in listed(api)] == ["0", "2"]
    assert discard(api, {"all": True}) == {"discarded": 2}
    assert api.world.dead_letters.queues["acme"] == []
    assert api.world.publishing.sent == []


def test_the_journal_tells_who_did_it(api: Served) -> None:
    first, second = reject(api.world, message("a"), message("b"))
    replay(api, {"ids": ["a"]})
    discard(api, {"all": True})
    events = api.world.journal.read_stream("dead_letters-acme")
    assert [one.event for one in events] == [
        DeadLettersReplayed(tenant_id="acme", count=1, ids=(str(first),)),
        DeadLettersDiscarded(tenant_id="acme", count=1, ids=(str(second),)),
    ]
    assert events[0].metadata.actor.startswith("uid=")
    shown = api.control.get("/tenants/acme/events").json()["data"]
    assert [one["type"] for one in shown][-2:] == ["DeadLettersReplayed", "DeadLettersDiscarded"]


def test_a_message_somebody_else_rejected_is_found_by_a_walk(api: Served) -> None:
    reject(api.world, message("known"))
    api.world.dead_letters.queues["acme"].append(queued(message("stranger"), "expired"))
    assert [one["id"] for one in listed(api)] == ["known"]
    assert replay(api, {"ids": ["known"]}) == {"replayed": 1}
    (stranger,) = listed(api)
    assert (stranger["id"], stranger["reason"]) == ("stranger", "expired")
    assert stranger["dead_lettered_at"] == "2026-01-31T12:00:00.000000Z"
    events = api.world.journal.read_stream("dead_letters-acme")
    assert [(type(one.event).__name__, one.id) for one in events][:1] == [
        ("MessageDeadLettered", UUID(stranger["letter_id"]))
    ]
    assert replay(api, {"all": True}) == {"replayed": 1}
    assert [one.message_id for one in api.world.publishing.sent] == ["known", "stranger"]


def test_several_hundred_are_replayed_in_batches(api: Served) -> None:
    reject(api.world, *[message(str(number)) for number in range(250)])
    assert replay(api, {"all": True}) == {"replayed": 250}
    events = api.world.journal.read_stream("dead_letters-acme")
    assert sum(len(one.event.ids) for one in events) == 250  # type: ignore[union-attr]


def test_a_long_replay_gives_way_to_others_that_wait_and_says_that_letters_are_left(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    reject(api.world, *[message(str(number)) for number in range(250)])
    with monkeypatch.context() as patch:
        patch.setattr(routes, "SHORTEST_TURN", 0.0)
        patch.setattr(Pool, "wanted", True)
        left = replay(api, {"all": True})
    assert left["complete"] is False
    assert 0 < left["replayed"] < 250
    assert replay(api, {"all": True}) == {"replayed": 250 - left["replayed"]}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ids": []},
        {"ids": [""]},
        {"ids": [1]},
        {"ids": "m"},
        {"ids": ["m"], "all": True},
        {"all": False},
        {"all": 1},
        {"all": "true"},
        {"ids": ["m"] * 1001},
        [],
        None,
    ],
)
def test_a_body_that_does_not_say_which_is_422(api: Served, body: object) -> None:
    reject(api.world, message("m"))
    for method, path in (("POST", "dead-letters/replay"), ("DELETE", "dead-letters")):
        answer = api.control.request(method, f"/tenants/acme/{path}", json=body)
        assert answer.status_code == 422, answer.text
    assert len(listed(api)) == 1


def test_an_unknown_tenant_is_404_and_a_busy_queue_409(api: Served) -> None:
    assert api.control.get("/tenants/nobody/dead-letters").status_code == 404
    path = "/tenants/nobody/dead-letters/replay"
    assert api.control.post(path, json={"all": True}).status_code == 404
    api.app.state.services.turns._patience = 0.05
    api.world.dead_letters.walked.add("acme")
    path = "/tenants/acme/dead-letters/replay"
    busy = api.control.post(path, json={"all": True})
    assert (busy.status_code, busy.headers["retry-after"]) == (409, "1")
    api.world.dead_letters.walked.clear()
    api.world.dead_letters.error = BrokerUnavailableError("away")
    assert api.control.post(path, json={"all": True}).status_code == 503


def test_replays_that_wait_for_another_walk_hold_no_thread(api: Served) -> None:
    world, turns = api.world, api.app.state.services.turns
    turns._patience = DEADLINE
    world.create("other")
    reject(world, *[message(str(number)) for number in range(20)])
    world.dead_letters.walked.add("acme")
    path, most = "/tenants/{}/dead-letters/replay", turns._most
    with ThreadPoolExecutor(most) as clients:
        waiting = [clients.submit(replay, api, {"ids": [str(number)]}) for number in range(most)]
        try:
            eventually(lambda: turns._there["acme"] == most)
            assert world.dead_letters.refused.acquire(timeout=DEADLINE)
            # As many wait as may, four times the threads there are: all else goes on.
            one_more = api.control.post(path.format("acme"), json={"all": True})
            assert (one_more.status_code, one_more.headers["retry-after"]) == (409, "1")
            dry = {"all": True, "dry_run": True}
            for tenant_id, wanted in (("acme", dry), ("other", dry), ("other", {"all": True})):
                answer = api.control.post(path.format(tenant_id), json=wanted)
                assert answer.status_code == 202, answer.text
            sent = api.control.post("/tenants/other/messages", json={"payload": {}})
            assert sent.status_code == 202, sent.text
            assert api.control.post("/tenants/other/pause").is_success
        finally:
            world.dead_letters.walked.clear()
        assert [one.result(DEADLINE) for one in waiting] == [{"replayed": 1}] * most
    assert not turns._there
    assert not turns._locks


def test_a_letter_the_broker_will_not_take_does_not_hinder_the_others(
    api: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    reject(api.world, message("a"), message("never"), message("b"))
    publish = api.world.publishing.publish

    def refuse(messages: list[Outgoing], *, timeout: float) -> None:
        if any(one.message_id == "never" for one in messages):
            raise BrokerError("a message can't be sent over AMQP")
        publish(messages, timeout=timeout)

    monkeypatch.setattr(api.world.publishing, "publish", refuse)
    assert replay(api, {"all": True}) == {"replayed": 2, "refused_by_broker": 1}
    (never,) = listed(api)
    assert (never["id"], never["replays"]) == ("never", 0)


# Which letters, and how many.


def replays(world: World, letter_id: UUID, count: int) -> None:
    """Have a letter be one that has failed in so many replays."""
    (one,) = [one for one in world.letters._tenant("acme").letters if one.row.id == letter_id]
    one.row.replays = one.row.failed = count
    queue = world.dead_letters.queues["acme"]
    at = next(at for at, two in enumerate(queue) if two.message.id == one.message.id)
    marks = {REPLAY_HEADER: str(letter_id), REPLAYS_HEADER: count}
    queue[at] = queue[at]._replace(message=queue[at].message._replace(headers=marks))


def test_a_filter_picks_letters_for_reading_replaying_and_discarding(api: Served) -> None:
    reject(api.world, message("a"), message("b", topic="events"))
    assert [one["id"] for one in listed(api, topic="events")] == ["b"]
    assert listed(api, reason="expired") == []
    assert len(listed(api, since="2026-01-01T00:00:00Z", until="2100-01-01T00:00:00Z")) == 2
    assert replay(api, {"filter": {"topic": "events"}}) == {"replayed": 1}
    assert discard(api, {"filter": {"until": "2000-01-01T00:00:00Z"}}) == {"discarded": 0}
    assert discard(api, {"filter": {"reason": "not_json", "topic": "logs"}}) == {"discarded": 1}


@pytest.mark.parametrize(
    "body",
    [
        {"filter": {}},
        {"filter": {"since": "yesterday"}},
        {"filter": {"reason": "x"}, "all": True},
        {"filter": {"colour": "red"}},
        {"all": True, "limit": 0},
        {"all": True, "dry_run": 1},
    ],
)
def test_a_filter_that_says_nothing_or_nonsense_is_422(api: Served, body: object) -> None:
    for method, path in (("POST", "dead-letters/replay"), ("DELETE", "dead-letters")):
        answer = api.control.request(method, f"/tenants/acme/{path}", json=body)
        assert answer.status_code == 422, answer.text
    answer = api.control.request(
        "DELETE", "/tenants/acme/dead-letters", json={"all": True, "force": True}
    )
    assert answer.status_code == 422


def test_a_cursor_is_good_for_its_own_filter_alone(api: Served) -> None:
    reject(api.world, *[message(str(number)) for number in range(3)])
    path = "/tenants/acme/dead-letters"
    cursor = api.control.get(path, params={"limit": 1}).json()["next_cursor"]
    assert api.control.get(path, params={"cursor": cursor}).status_code == 200
    answer = api.control.get(path, params={"cursor": cursor, "topic": "logs"})
    assert answer.status_code == 400


def test_a_dry_run_tells_what_would_happen_and_changes_nothing(api: Served) -> None:
    ids = reject(api.world, message("a"), message("b"), message("c", topic="events"))
    replays(api.world, ids[0], 10)
    shown = replay(api, {"all": True, "dry_run": True})
    assert (shown["dry_run"], shown["count"], shown["replayed_too_often"]) == (True, 3, 1)
    assert shown["places"] == [
        {"topic": "events", "partition": 1, "count": 1},
        {"topic": "logs", "partition": 1, "count": 2},
    ]
    assert discard(api, {"ids": ["a"], "dry_run": True})["count"] == 1
    assert len(listed(api)) == 3
    assert api.world.publishing.sent == []


def test_a_limit_ends_a_call_and_the_next_goes_on(api: Served) -> None:
    reject(api.world, *[message(str(number)) for number in range(5)])
    assert replay(api, {"all": True, "limit": 3}) == {"replayed": 3, "complete": False}
    assert [one["id"] for one in listed(api)] == ["3", "4"]
    assert replay(api, {"all": True, "limit": 3}) == {"replayed": 2}


def test_a_letter_that_was_replayed_too_often_stays_unless_forced(api: Served) -> None:
    ids = reject(api.world, message("worn"), message("fresh"))
    replays(api.world, ids[0], 10)
    assert replay(api, {"all": True}) == {"replayed": 1, "replayed_too_often": 1}
    assert replay(api, {"ids": ["worn"]}) == {"replayed": 0, "replayed_too_often": 1}
    assert replay(api, {"ids": ["worn"], "force": True}) == {"replayed": 1}
    assert [one.headers and one.headers[REPLAYS_HEADER] for one in api.world.publishing.sent] == [
        1,
        11,
    ]


def test_one_letter_is_shown_by_either_id_with_or_without_its_bytes(api: Served) -> None:
    ids = reject(api.world, message("a", b"one"), message("a", b"two"), message("b"))
    path = "/tenants/acme/dead-letters"
    shown = api.control.get(f"{path}/b").json()
    assert (shown["letter_id"], shown["replays"]) == (str(ids[2]), 0)
    assert base64.b64decode(api.control.get(f"{path}/{ids[1]}").json()["body"]) == b"two"
    answer = api.control.get(f"{path}/a")
    assert answer.status_code == 409
    assert answer.json()["letter_ids"] == [str(ids[0]), str(ids[1])]
    assert api.control.get(f"{path}/none").status_code == 404
    bare = api.control.get(f"{path}/b", params={"payload": "false"}).json()
    assert bare == {name: shown[name] for name in shown.keys() - {"body", "headers"}}
    assert "body" not in listed(api, payload="false")[0]
