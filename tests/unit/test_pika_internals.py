"""pika's private names: all that are used are there, and another version is refused by name."""

from __future__ import annotations

import pika
import pytest

from tenantry.broker.rabbitmq.pika_internals import check_names


def test_a_pika_without_a_private_name_is_refused_with_its_version() -> None:
    check_names([("_here", ["_here", "_there"])])
    with pytest.raises(ImportError, match=f"pika {pika.__version__} .* no _gone, _moved; install"):
        check_names([("_here", ["_here"]), ("_gone", ["_here"]), ("_moved", [])])
