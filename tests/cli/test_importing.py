"""`tenantry tenant import`: all of a file's tenants, once, whatever happens in between."""

from __future__ import annotations

import errno
import itertools
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tenantry.cli import importing
from tenantry.cli.client import ControlClient
from tenantry.cli.output import ApiError
from tests.api.serving import Served

Run = Callable[..., tuple[int, str, str]]

pytestmark = pytest.mark.usefixtures("_isolated")

CSV = """\ufeffID,name,topics,partitions,workers
acme,"Acme, Ltd",events logs:8:ordered,2,3

globex,,,,
initech,Initech,,1,
"""


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_tenants_of_a_csv_file_are_made_and_their_credentials_kept(
    api: Served, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "tenants.csv").write_text(CSV)
    code, out, err = run("tenant", "import", "tenants.csv", "--credentials", "credentials")
    assert (code, out, err) == (0, "created 3, 0 existed, 0 failed\n", "")
    made = {one["id"]: one for one in json.loads(run("tenant", "list", "--json")[1])}
    acme = made["acme"]
    assert (acme["name"], acme["topics"]) == ("Acme, Ltd", ["events", "logs"])
    assert (acme["partitions"], acme["workers"]) == (2, 3)
    assert acme["topic_settings"] == [
        {"name": "events", "partitions": 2, "ordering": "none"},
        {"name": "logs", "partitions": 8, "ordering": "partition"},
    ]
    assert made["globex"]["name"] == "globex"
    file = tmp_path / "credentials"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    kept = {one["id"]: one for one in lines(file)}
    assert kept.keys() == made.keys()
    assert kept["acme"]["username"] == "tenant_acme_producer"
    assert all(one["password"] for one in kept.values())
    # Again: nothing is made anew, and nothing is lost.
    code, out, err = run("tenant", "import", "tenants.csv", "--credentials", "credentials")
    assert (code, out, err) == (0, "created 0, 3 existed, 0 failed\n", "")
    assert {one["id"]: one for one in lines(file)} == kept


def test_json_lines_are_taken_and_what_was_done_is_told_as_json(
    api: Served, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "tenants").write_text('\n{"id": "a", "topics": ["x"]}\n\n{"id": "b"}\n')
    (tmp_path / "old").touch(0o600)
    (tmp_path / "old").write_text('{"id": "half')
    code, out, err = run("tenant", "import", "tenants", "--credentials", "old", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {
        "created": 2,
        "existed": 0,
        "failed": [],
        "without_credentials": [],
    }
    half, *rest = (tmp_path / "old").read_text().splitlines()
    assert half == '{"id": "half'
    assert {json.loads(line)["id"] for line in rest} == {"a", "b"}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "CSV begins with a line of columns"),
        ("name\nx\n", "with id among them"),
        ("id,colour\nx,red\n", "CSV begins"),
        ("id,id\nx,y\n", "CSV begins"),
        ("id\n", "there is no tenant in it"),
        ("id\nx\nX_\nx\n", "line 3: needs an id"),
        ("id\nx\nY\nx\n", "line 4: id 'x' stands in line 2 already"),
        ("id\nx,y\n", "line 2: has 2 cells, and the header 1 columns"),
        ("id,workers\nx,many\n", "line 2: workers: "),
        ("id,workers\nx,65\n", "line 2: workers: "),
        ("id,topics\nx,default\n", "line 2: 'default' is no topic"),
        ("id,topics\nx,a:b\n", "line 2: 'a:b' is no topic: NAME"),
        ('id,name\nx,"open\n', "can't be read"),
        ('{"id": "x"}\n{"id": 7}\n', "line 2: needs an id"),
        ('{"id": "x"}\n["y"]\n', "line 2: is no JSON object"),
        ('{"id": "x"}\n{"id": \n', "line 2: is no JSON: "),
        ('{"id": "x", "colour": "red"}\n', "line 1: colour: "),
        ('{"id": "x", "name": ""}\n', "line 1: name: "),
    ],
)
def test_of_a_file_with_a_mistake_nothing_is_made_and_the_line_is_named(
    api: Served, run: Run, tmp_path: Path, text: str, problem: str
) -> None:
    (tmp_path / "tenants").write_text(text)
    code, out, err = run("tenant", "import", "tenants", "--no-credentials")
    assert (code, out) == (2, "")
    assert problem in err
    assert json.loads(run("tenant", "list", "--json")[1]) == []


def test_bytes_that_are_no_text_are_told_of(api: Served, run: Run, tmp_path: Path) -> None:
    (tmp_path / "tenants").write_bytes(b"id\nx\n\xff\n")
    code, _, err = run("tenant", "import", "tenants", "--no-credentials")
    assert code == 2
    assert "can't be read" in err


def test_where_the_credentials_go_has_to_be_said_and_nobody_else_may_read_there(
    api: Served, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "tenants").write_text("id\nx\n")
    code, _, err = run("tenant", "import", "tenants")
    assert (code, "--no-credentials" in err) == (2, True)
    (tmp_path / "open").touch()
    (tmp_path / "open").chmod(0o644)
    for place in ("open", "nowhere/file"):
        code, _, err = run("tenant", "import", "tenants", "--credentials", place)
        assert (code, place in err) == (1, True)
    assert json.loads(run("tenant", "list", "--json")[1]) == []


def test_a_dry_run_tells_and_makes_nothing(api: Served, run: Run, tmp_path: Path) -> None:
    run("tenant", "create", "--id", "acme")
    (tmp_path / "tenants").write_text("id,partitions\nacme,\nglobex,\n")
    code, out, err = run("tenant", "import", "tenants", "--dry-run")
    told = "1 would be created, 1 exist, 0 exist otherwise than the file says\n"
    assert (code, out, err) == (0, told, "")
    assert [one["id"] for one in json.loads(run("tenant", "list", "--json")[1])] == ["acme"]


def test_a_tenant_that_exists_otherwise_is_left_as_it_is_and_told_of(
    api: Served, run: Run, tmp_path: Path
) -> None:
    run("tenant", "create", "Acme", "--id", "acme", "--topic", "a,b", "--partitions", "2")
    (tmp_path / "tenants").write_text(
        '{"id": "acme", "name": "Acme", "topics": ["b"], "partitions": 3}\n{"id": "globex"}\n'
    )
    code, out, err = run("tenant", "import", "tenants", "--credentials", "kept")
    assert (code, out) == (1, "created 1, 0 existed, 1 failed\n")
    assert "line 1: acme: exists with partitions 2" in err
    assert "of acme the file has no credentials" in err
    assert json.loads(run("tenant", "show", "acme", "--json")[1])["partitions"] == 2


def test_what_the_daemon_can_t_do_now_is_tried_again_and_what_it_refuses_is_told(
    api: Served, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "PAUSES", (0.0, 0.0))
    planned = {
        "a": [ApiError(503, "away"), ApiError(429, "too many")],
        "b": [ApiError(503, "away")] * 3,
        "c": [ApiError(500, "broken")],
    }
    call = ControlClient.call

    def faulty(self: ControlClient, method: str, path: str, body: Any = None, **more: Any) -> Any:
        if method == "POST" and planned.get(body["id"]):
            raise planned[body["id"]].pop(0)
        return call(self, method, path, body, **more)

    monkeypatch.setattr(ControlClient, "call", faulty)
    (tmp_path / "tenants").write_text("id\na\nb\nc\nd\n")
    code, out, err = run("tenant", "import", "tenants", "--no-credentials", "--json")
    told = json.loads(out)
    assert (code, told["created"]) == (1, 2)
    assert sorted((one["line"], one["id"], one["problem"]) for one in told["failed"]) == [
        (3, "b", "away"),
        (4, "c", "broken"),
    ]
    assert "2 failed; the same command tries them again" in err
    code, out, _ = run("tenant", "import", "tenants", "--no-credentials")
    assert (code, out) == (0, "created 2, 2 existed, 0 failed\n")


def test_a_call_that_had_no_answer_and_its_effect_is_no_second_tenant(
    api: Served, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "PAUSES", (0.0,))
    call = ControlClient.call
    unanswered = {"a"}

    def lossy(self: ControlClient, method: str, path: str, body: Any = None, **more: Any) -> Any:
        answer = call(self, method, path, body, **more)
        if method == "POST" and body["id"] in unanswered:
            unanswered.remove(body["id"])
            raise ApiError(504, "no answer in time")
        return answer

    monkeypatch.setattr(ControlClient, "call", lossy)
    (tmp_path / "tenants").write_text("id\na\nb\n")
    code, out, err = run("tenant", "import", "tenants", "--credentials", "kept")
    assert (code, out) == (0, "created 1, 1 existed, 0 failed\n")
    assert "of a the file has no credentials: `tenantry tenant rotate-credentials`" in err
    assert [one["id"] for one in lines(tmp_path / "kept")] == ["b"]


def test_ctrl_c_loses_no_credentials_and_the_same_command_goes_on(
    api: Served, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tenants").write_text("id\n" + "".join(f"t{n}\n" for n in range(20)))
    add, added = importing.Credentials.add, itertools.count(1)

    def interrupted(self: importing.Credentials, made: dict[str, Any]) -> None:
        add(self, made)
        if next(added) == 4:  # whichever it is: others do not wait for a certain one
            raise KeyboardInterrupt

    monkeypatch.setattr(importing.Credentials, "add", interrupted)
    command = ("tenant", "import", "tenants", "--credentials", "kept", "--concurrency", "2")
    code, _, err = run(*command)
    assert code == 130
    assert "the same command goes on" in err
    there = {one["id"] for one in json.loads(run("tenant", "list", "--json")[1])}
    assert there == {one["id"] for one in lines(tmp_path / "kept")}
    assert len(there) < 20
    monkeypatch.undo()
    monkeypatch.setenv("TENANTRY_CONTROL_SOCKET", str(api.path))
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("tenant", "import", "tenants", "--credentials", "kept")
    assert (code, out) == (0, f"created {20 - len(there)}, {len(there)} existed, 0 failed\n")
    assert len(lines(tmp_path / "kept")) == 20


def test_a_full_disk_is_told_with_the_file_and_whose_credentials_are_lost(
    api: Served, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_number: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    (tmp_path / "tenants").write_text("id\na\nb\n")
    code, _, err = run("tenant", "import", "tenants", "--credentials", "kept", "--concurrency", "1")
    assert code == 1
    assert "can't write kept: No space left on device; tenant a was made" in err
    assert [one["id"] for one in json.loads(run("tenant", "list", "--json")[1])] == ["a"]
