"""The tests' own Iggy server, and what is said where its certificate can't be trusted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tenantry.broker.iggy.client import Access, Session
from tenantry.broker.port import BrokerError
from tests import services_iggy
from tests.waiting import DEADLINE, eventually

STARTED_AND_KILLED = """
import os, signal, sys
from pathlib import Path
from tests.iggy_server import PrivateIggy
server = PrivateIggy(Path(sys.argv[1]), Path(sys.argv[2]))
server.start()
print(server.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_server_of_a_run_that_is_killed_ends_with_it(tmp_path: Path) -> None:
    if not os.environ.get(services_iggy.SERVER):
        pytest.skip(services_iggy.NOWHERE)
    program = os.environ[services_iggy.SERVER]
    ended = subprocess.run(
        [sys.executable, "-c", STARTED_AND_KILLED, program, str(tmp_path)],
        stdout=subprocess.PIPE,
        timeout=DEADLINE,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL
    eventually(lambda: not psutil.pid_exists(int(ended.stdout)))


@pytest.mark.parametrize("name", ["nowhere.pem", "."])
def test_an_authority_that_can_t_be_read_is_told_with_its_key(
    iggy: str, tmp_path: Path, name: str
) -> None:
    secured = iggy.replace("iggy://", "iggys://", 1)
    with pytest.raises(BrokerError, match=r"broker\.ca_file \(BROKER_CA_FILE\) is .*PEM"):
        Session(Access.of(secured, ca_file=str(tmp_path / name)))
