"""RabbitMQ's management API: the few calls that are needed, in versions 3.10 to 4.x."""

from __future__ import annotations

import base64
import json
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote, urlencode, urlsplit

import httpx

from tenantry.broker.adapter import UNFENCED, TermFence
from tenantry.broker.port import BrokerError, BrokerUnavailableError
from tenantry.broker.rabbitmq.http_pool import FAILURES, Answer, HttpPool, PoolClosedError
from tenantry.broker.rabbitmq.tls import SYSTEMS, Tls
from tenantry.broker.rabbitmq.tls import problem as tls_problem
from tenantry.broker.survey import Permissions
from tenantry.urls import Alternatives, address, alternatives

ATTEMPTS: Final = 4
FIRST_BACKOFF: Final = 0.1
LONGEST_BACKOFF: Final = 1.0
TIMEOUT: Final = httpx.Timeout(10.0, connect=3.0)
"""Seconds. A call with all its attempts ends within a minute, usually much sooner."""

_PAGE_SIZE: Final = 500
_HASHING: Final = "rabbit_password_hashing_sha256"
_USER_COLUMNS: Final = "name,password_hash,tags"
_CALLED: Final = "client_properties.connection_name"
"""The only client property read: clients may send large ones."""

_LIGHT: Final = {"disable_stats": "true"}


class ListedConnection(NamedTuple):
    """A connection: its user, the name its client gave it, and when the broker accepted it.

    `accepted_at` is in milliseconds by the broker's clock; None if the broker keeps no statistics.
    """

    name: str
    user: str
    called: str
    accepted_at: int | None


class _Node:
    """The management API of one node: its address, and the connections to it."""

    def __init__(self, url: str, tls: Tls) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if not host or parts.scheme not in {"http", "https"}:
            raise BrokerError(
                "rabbitmq.management_url is not an HTTP URL: http://user:password@host:15672"
            )
        self.path: Final = parts.path.rstrip("/")
        self.address: Final = f"{parts.scheme}://{address(host, port)}{self.path}"
        self.secured: Final = parts.scheme == "https"
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        login = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        self.pool: Final = HttpPool(
            host,
            port or (443 if self.secured else 80),
            # The same TLS settings as for AMQP.
            context=tls.context() if self.secured else None,
            headers={"Authorization": f"Basic {login}", "Accept": "*/*"},
        )


class ManagementClient:
    """A client of the management API, for one virtual host. Callable from any thread.

    Every call here may be repeated without harm, and is repeated, a bounded number of times, if the
    broker can't be reached or fails. Raises `BrokerUnavailableError` if that does not help, and
    `BrokerError` if the broker refuses; neither repeats a password.
    """

    def __init__(
        self, url: str, *, vhost: str, fence: TermFence = UNFENCED, tls: Tls = SYSTEMS
    ) -> None:
        self.virtual_host = vhost
        self._vhost = quote(vhost, safe="")
        self._fence = fence
        self._nodes = Alternatives([_Node(one, tls) for one in alternatives(url)])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r}, vhost={self.virtual_host!r})"

    def close(self) -> None:
        """Close the connections to the broker."""
        for node in self._nodes:
            node.pool.close()

    @property
    def address(self) -> str:
        """The address of the management API in use."""
        return self._nodes.current.address

    def user(self, name: str) -> Mapping[str, Any] | None:
        """Return a user with its password's hash and its tags, or None."""
        found = self._call(
            "GET",
            f"users/{_quoted(name)}",
            parameters={"columns": _USER_COLUMNS},
            absent_is_fine=True,
        )
        return None if found is None else {**found, "tags": _tags(found.get("tags"))}

    def put_user(self, name: str, password_hash: str, *, tags: Sequence[str] = ()) -> None:
        """Make a user or change its password, by the hash alone; set its tags, none by default."""
        body = {
            "password_hash": password_hash,
            "hashing_algorithm": _HASHING,
            "tags": ",".join(tags),
        }
        self._call("PUT", f"users/{_quoted(name)}", body=body)

    def delete_user(self, name: str) -> None:
        """Delete a user, if there is one."""
        self._call("DELETE", f"users/{_quoted(name)}", absent_is_fine=True)

    def put_permissions(self, name: str, *, configure: str, write: str, read: str) -> None:
        """Set the patterns of the names that a user may configure, write to and read from."""
        body = {"configure": configure, "write": write, "read": read}
        self._call("PUT", f"permissions/{self._vhost}/{_quoted(name)}", body=body)

    def delete_permissions(self, name: str) -> None:
        """Revoke a user's permissions in the virtual host."""
        self._call("DELETE", f"permissions/{self._vhost}/{_quoted(name)}", absent_is_fine=True)

    def user_limits(self, name: str | None = None) -> Mapping[str, Mapping[str, int]]:
        """Return users' limits by their names: of one user, or of all with limits."""
        path = "user-limits" if name is None else f"user-limits/{_quoted(name)}"
        listed = self._call("GET", path, absent_is_fine=True) or ()
        return {one["user"]: one["value"] for one in listed}

    def put_user_limit(self, name: str, limit: str, value: int) -> None:
        """Set a limit of a user."""
        self._call("PUT", f"user-limits/{_quoted(name)}/{limit}", body={"value": value})

    def delete_user_limit(self, name: str, limit: str) -> None:
        """Remove a limit of a user, if it is set."""
        self._call("DELETE", f"user-limits/{_quoted(name)}/{limit}", absent_is_fine=True)

    def operator_policies(self) -> Mapping[str, Mapping[str, Any]]:
        """Return the operator policies of the virtual host, by their names."""
        return {
            one["name"]: {
                key: one.get(key) for key in ("pattern", "apply-to", "priority", "definition")
            }
            for one in self._call("GET", f"operator-policies/{self._vhost}")
        }

    def put_operator_policy(self, name: str, policy: Mapping[str, Any]) -> None:
        """Make an operator policy, or replace the one of that name."""
        self._call("PUT", f"operator-policies/{self._vhost}/{_quoted(name)}", body=policy)

    def delete_operator_policy(self, name: str) -> None:
        """Delete an operator policy, if there is one."""
        path = f"operator-policies/{self._vhost}/{_quoted(name)}"
        self._call("DELETE", path, absent_is_fine=True)

    def queue_arguments(self, pattern: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the arguments of the queues whose names match a regular expression somewhere."""
        return {
            item["name"]: item.get("arguments") or {}
            for item in self._pages("queues", pattern, "name,arguments")
        }

    def permissions_of(self, name: str) -> Mapping[str, Permissions]:
        """Return a user's permissions, by virtual host, in all of them."""
        listed = self._call("GET", f"users/{_quoted(name)}/permissions", absent_is_fine=True) or ()
        return {one["vhost"]: _permissions(one) for one in listed}

    def close_connections(self, name: str, reason: str) -> None:
        """Close all connections of a user, which receives the reason.

        At most two attempts, each with 5 seconds for the answer.
        """
        self._call(
            "DELETE",
            f"connections/username/{_quoted(name)}",
            headers={"X-Reason": reason},
            absent_is_fine=True,
            timeout=httpx.Timeout(5.0),
            attempts=2,
        )

    def connections_of(self, user: str) -> Sequence[tuple[str, str]]:
        """List a user's connections to the virtual host: each name, and the one its client gave it.

        Of other users' connections nothing but the user is read.
        """
        columns = {"columns": f"name,user,{_CALLED}"}
        listed = self._call("GET", f"vhosts/{self._vhost}/connections", parameters=columns)
        return [(one["name"], _called(one)) for one in listed if one.get("user") == user]

    def connections(self) -> Sequence[ListedConnection]:
        """List the connections to the virtual host, as of some 5 seconds ago.

        One attempt, with 15 seconds for the answer.
        """
        listed = self._call(
            "GET",
            f"vhosts/{self._vhost}/connections",
            parameters={"columns": f"name,user,connected_at,{_CALLED}"},
            timeout=httpx.Timeout(15.0),
            attempts=1,
        )
        return [
            ListedConnection(
                name=one["name"],
                user=one.get("user") or "",
                called=_called(one),
                accepted_at=one.get("connected_at"),
            )
            for one in listed
        ]

    def close_connection(self, name: str, reason: str, *, seconds: float) -> None:
        """Close a connection by its name; its client receives the reason.

        The broker answers when the connection's channels have ended. One attempt, with `seconds`
        for the answer.
        """
        self._call(
            "DELETE",
            f"connections/{_quoted(name)}",
            headers={"X-Reason": reason},
            absent_is_fine=True,
            timeout=httpx.Timeout(seconds),
            attempts=1,
        )

    def message_counts(self) -> Mapping[str, tuple[int, int]]:
        """Count the messages ready and unacknowledged in every queue, as of some 5 seconds ago."""
        parameters = {
            **_LIGHT,
            "enable_queue_totals": "true",
            "columns": "name,messages_ready,messages_unacknowledged",
        }
        # A queue that was made a moment ago has no count yet.
        return {
            queue["name"]: (
                queue.get("messages_ready") or 0,
                queue.get("messages_unacknowledged") or 0,
            )
            for queue in self._call("GET", f"queues/{self._vhost}", parameters=parameters)
        }

    def queues(self, pattern: str) -> Sequence[str]:
        """List the queues whose names match a regular expression somewhere."""
        return [item["name"] for item in self._pages("queues", pattern)]

    def exchanges(self, pattern: str) -> Sequence[str]:
        """List the exchanges whose names match a regular expression somewhere."""
        return [item["name"] for item in self._pages("exchanges", pattern)]

    def definitions(self) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """Return the durable exchanges, queues and bindings of the virtual host, in one call."""
        found = self._call("GET", f"definitions/{self._vhost}")
        return {kind: found.get(kind) or [] for kind in ("exchanges", "queues", "bindings")}

    def users(self) -> Sequence[Mapping[str, Any]]:
        """List all users, with their password hashes and tags."""
        return [
            {**user, "tags": _tags(user.get("tags"))}
            for user in self._call("GET", "users", parameters={"columns": _USER_COLUMNS})
        ]

    def permissions(self) -> Mapping[str, Mapping[str, Permissions]]:
        """Return each user's permissions, by virtual host."""
        found: defaultdict[str, dict[str, Permissions]] = defaultdict(dict)
        for one in self._call("GET", "permissions"):
            found[one["user"]][one["vhost"]] = _permissions(one)
        return found

    def consumed_by(self, user: str) -> frozenset[str]:
        """Return the queues that a user consumes."""
        columns = {"columns": "queue.name,channel_details.user"}
        listed = self._call("GET", f"consumers/{self._vhost}", parameters=columns)
        return frozenset(
            one["queue"]["name"]
            for one in listed
            # A channel that has just been closed has no details any more.
            if isinstance(one.get("channel_details"), dict)
            and one["channel_details"].get("user") == user
        )

    def tags(self) -> frozenset[str]:
        """Return the tags of this client's own user."""
        return _tags(self._call("GET", "whoami").get("tags"))

    def check_vhost(self) -> None:
        """Raise `BrokerError` unless the virtual host exists and is accessible."""
        self._call("GET", f"vhosts/{self._vhost}", parameters={"columns": "name"})

    def _pages(self, kind: str, pattern: str, columns: str = "name") -> Iterator[Mapping[str, Any]]:
        page, pages = 1, 1
        while page <= pages:
            parameters: dict[str, str | int] = {
                **_LIGHT,
                "columns": columns,
                "name": pattern,
                "use_regex": "true",
                "page": page,
                "page_size": _PAGE_SIZE,
            }
            answer = self._call("GET", f"{kind}/{self._vhost}", parameters=parameters)
            yield from answer["items"]
            page, pages = page + 1, answer["page_count"]

    def _call(
        self,
        method: str,
        path: str,
        *,
        parameters: Mapping[str, str | int] | None = None,
        body: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        absent_is_fine: bool = False,
        timeout: httpx.Timeout = TIMEOUT,
        attempts: int = ATTEMPTS,
    ) -> Any:
        """Make a call and return its JSON; None without content, or if a 404 is fine."""
        target = f"/api/{path}" + (f"?{urlencode(parameters)}" if parameters else "")
        said = dict(headers or {})
        sent = None
        if body is not None:
            sent = json.dumps(body).encode()
            said["Content-Type"] = "application/json"
        problem, asked = "", self.address
        for attempt in range(attempts + len(self._nodes) - 1):
            if attempt:
                ceiling = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** (attempt - 1))
                time.sleep(ceiling * (0.5 + random.random() / 2))  # noqa: S311 - jitter
            self._fence.check()
            node = self._nodes.current
            asked = node.address
            try:
                answer = node.pool.request(
                    method,
                    node.path + target,
                    body=sent,
                    headers=said,
                    connect_timeout=timeout.connect,
                    timeout=timeout.read,
                    # Again once connected: connecting may have taken long.
                    before_sending=self._fence.check,
                )
            except FAILURES as error:
                self._nodes.failed(node)
                problem = (
                    tls_problem(error, secured=node.secured)
                    or _one_line(str(error))
                    or type(error).__name__
                )
                continue
            except PoolClosedError as error:
                # The daemon is stopping while a thread still makes calls.
                raise BrokerUnavailableError("the way to RabbitMQ has been closed") from error
            if answer.status >= httpx.codes.INTERNAL_SERVER_ERROR:
                self._nodes.failed(node)
                problem = f"HTTP {answer.status}"
                continue
            if answer.status == httpx.codes.NOT_FOUND and absent_is_fine:
                return None
            if not httpx.codes.is_success(answer.status):
                raise self._refused(answer, method, path)
            return self._json(answer)
        raise BrokerUnavailableError(
            f"RabbitMQ's management API does not answer at {asked}: {problem}"
        )

    def _json(self, answer: Answer) -> Any:
        if not answer.content:
            return None
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError):
            raise self._not_management() from None

    def _refused(self, answer: Answer, method: str, path: str) -> BrokerError:
        match answer.status:
            case httpx.codes.UNAUTHORIZED:
                return BrokerError(
                    f"RabbitMQ's management API at {self.address} refuses user name and password: "
                    "check rabbitmq.management_url, and that the user has the tag administrator"
                )
            case httpx.codes.FORBIDDEN:
                return BrokerError(
                    f"RabbitMQ's management API at {self.address} forbids {method} {path}: "
                    "the user needs the tag administrator"
                )
            case httpx.codes.NOT_FOUND if not _is_json(answer):
                return self._not_management()
            case httpx.codes.NOT_FOUND:
                return BrokerError(
                    f"RabbitMQ's management API at {self.address} knows no {path}: does the "
                    f"virtual host {self.virtual_host!r} exist?"
                )
            case _:
                return BrokerError(
                    f"RabbitMQ's management API at {self.address} refuses {method} {path} "
                    f"with HTTP {answer.status}: {_reason(answer)}"
                )

    def _not_management(self) -> BrokerError:
        return BrokerError(
            f"what answers at {self.address} is not RabbitMQ's management API: check "
            "rabbitmq.management_url; is the plugin rabbitmq_management enabled?"
        )


def _permissions(told: Mapping[str, Any]) -> Permissions:
    return Permissions(told["configure"], told["write"], told["read"])


def _called(connection: Mapping[str, Any]) -> str:
    told = connection.get("client_properties")
    called = told.get("connection_name") if isinstance(told, dict) else None
    return called if isinstance(called, str) else ""


def _tags(listed: str | Sequence[str] | None) -> frozenset[str]:
    # A string with commas up to 3.8, a list since.
    tags = listed.split(",") if isinstance(listed, str) else listed or ()
    return frozenset(filter(None, tags))


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _is_json(answer: Answer) -> bool:
    return "json" in answer.content_type


def _reason(answer: Answer) -> str:
    try:
        said = json.loads(answer.content)
    except (ValueError, RecursionError):
        return _one_line(answer.content.decode(errors="replace"))
    reason = said.get("reason") if isinstance(said, dict) else said
    return _one_line(str(reason))


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()[:200]
