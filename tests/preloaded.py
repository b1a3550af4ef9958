"""Programs whose imports are done: a process that has them all, and forks.

To load the program's modules takes seconds of processor time, for the daemon, for its front and
for every command; hundreds of them are run by the tests. So one process of the test run loads them
once. What it forks is a process in its own right, with its own pid, session, signals, environment,
directory and files, and runs what `python -m MODULE` runs. Tests of what happens before that say
so with the mark `own_interpreter`; without fork, or with TENANTRY_TEST_PRELOADED=no, all do.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import inspect
import json
import os
import resource
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from tests import on_demand, scratch
from tests.waiting import DEADLINE

ENVIRONMENT = "TENANTRY_TEST_PRELOADED"
"""Names the process's socket to every worker of a test run."""

ROOT = Path(__file__).parents[1]
MODULES = (
    "tenantry.daemon", "tenantry.cli.main", "tenantry.front.__main__", "tenantry.front.serving",
    # What these load only when they come to need it: each daemon does, and many a command.
    "anyio._backends._asyncio", "click._textwrap", "encodings.ascii", "encodings.idna",
    "importlib.readers", "importlib.resources.readers", "pydantic.v1", "tenantry.consumer.run",
    "tenantry.producer.run", "uvicorn.lifespan.off",
)  # fmt: skip
STARTING_OTHERS = ("tenantry.front.process", "tenantry.cli.child", "tenantry.processes.child")
LARGEST = 150_000
"""Bytes a request may have."""
FDS = 16


def available() -> bool:
    on_demand.ensure("preloaded")
    return os.environ.get(ENVIRONMENT, "").startswith("/")


class Preloaded:
    """The test run's own such process; it ends with the run, whatever has become of that."""

    variables = (ENVIRONMENT,)

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs, the environment names one or does not want any."""
        if os.environ.get(ENVIRONMENT) or sys.platform != "linux":
            return
        self._directory = scratch.short("tenantry-test-fork-")
        path = str(self._directory / "socket")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.preloaded", path],
            cwd=ROOT,
            env={key: value for key, value in os.environ.items() if key != ENVIRONMENT},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said, "the process that preloads has ended"
        os.environ[ENVIRONMENT] = path

    def stop(self) -> None:
        if self._process is not None:
            os.environ.pop(ENVIRONMENT, None)
            self._process.communicate(timeout=DEADLINE)
            self._process = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None


class Popen:
    """A process that was forked there: of `subprocess.Popen` what the tests and the daemon use."""

    def __init__(
        self,
        args: Sequence[str],
        *,
        address: str = "",
        cwd: Path | str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] | None = None,
        stdout: int | IO[bytes] | None = None,
        stderr: int | IO[bytes] | None = None,
        pass_fds: Sequence[int] = (),
        start_new_session: bool = False,
        process_group: int | None = None,
    ) -> None:
        assert list(args[:2]) == [sys.executable, "-m"], args
        self.args = list(args)
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        theirs: list[int] = []
        sent: dict[int, int] = {}
        if stdin == subprocess.PIPE:
            reading, writing = os.pipe()
            self.stdin = os.fdopen(writing, "wb")
            theirs.append(reading)
            stdin = reading
        if stdout == subprocess.PIPE:
            reading, writing = os.pipe()
            self.stdout = os.fdopen(reading, "rb")
            theirs.append(writing)
            stdout = writing
        for number, file in enumerate((stdin, stdout, stderr)):
            if file == subprocess.STDOUT:
                sent[number] = sent[1]
            elif file == subprocess.DEVNULL:
                theirs.append(os.open(os.devnull, os.O_RDWR))
                sent[number] = theirs[-1]
            elif file is None:
                sent[number] = number
            else:
                sent[number] = file if isinstance(file, int) else file.fileno()
        sent.update({one: one for one in pass_fds})
        request = {
            "arguments": list(args[2:]),
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
            "descriptors": list(sent),
            "session": start_new_session,
            "group": process_group is not None,
            "files": resource.getrlimit(resource.RLIMIT_NOFILE),
        }
        self._guard = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(address or os.environ[ENVIRONMENT])
        socket.send_fds(self._socket, [json.dumps(request).encode()], list(sent.values()))
        for descriptor in theirs:
            os.close(descriptor)
        self.pid = int(self._socket.recv(64))

    def poll(self) -> int | None:
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        descriptor = self._socket.fileno()
        if descriptor >= 0:
            look = select.poll()
            look.register(descriptor, select.POLLIN)
            if not look.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        with self._guard:
            if self.returncode is None:
                said = self._socket.recv(64)
                assert said, "the process that preloads has ended"
                self.returncode = int(said)
                self._socket.close()
            return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(
    args: Sequence[str], *, cwd: Path, env: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and give what it has printed."""
    if not available():
        return subprocess.run(
            args, cwd=cwd, env=env, timeout=timeout, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Popen(
            args, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess(list(args), process.returncode or 0, *printed)


# The process itself.


class Server:
    """Forks on request, and tells each caller the pid and then the exit code.

    Its only thread waits for everything at once: a fork of a process with threads is not to be
    trusted.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen(256)

    def serve(self) -> Callable[[], object]:
        """Serve for as long as stdin is open. In a child this returns, with what it has to run."""
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.data is not None:
                        selector.unregister(key.fd)
                        os.close(key.fd)
                        self._ended(*key.data)
                    elif key.fd == 0:
                        return lambda: 0
                    elif (asked := self._fork(selector)) is not None:
                        return _become(*asked, self._path)

    def _fork(self, selector: selectors.BaseSelector) -> tuple[Any, list[int]] | None:
        """Fork for the next caller; give what it has asked for in the child, which is freed."""
        caller, _ = self._listener.accept()
        body, descriptors, _, _ = socket.recv_fds(caller, LARGEST, FDS)
        if not body:
            caller.close()
            return None
        if pid := os.fork():
            for one in descriptors:
                os.close(one)
            selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, caller))
            with suppress(OSError):  # whoever has asked may be dead
                caller.send(str(pid).encode())
            return None
        for key in selector.get_map().values():
            if key.data is not None:
                os.close(key.fd)
                key.data[1].close()
        caller.close()
        self._listener.close()
        return json.loads(body), descriptors

    @staticmethod
    def _ended(pid: int, caller: socket.socket) -> None:
        _, status = os.waitpid(pid, 0)
        with suppress(OSError):  # whoever has asked may be dead
            caller.send(str(os.waitstatus_to_exitcode(status)).encode())
        caller.close()


def _become(
    request: dict[str, Any], descriptors: Sequence[int], address: str
) -> Callable[[], object]:
    """Make this process what was asked for, as `exec` would."""
    if request["session"]:
        os.setsid()
    elif request["group"]:
        os.setpgid(0, 0)
    targets = request["descriptors"]
    above = max(*targets, *descriptors) + 1
    aside = [fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, above) for one in descriptors]
    for one in descriptors:
        os.close(one)
    for one, target in zip(aside, targets, strict=True):
        os.dup2(one, target)
        os.close(one)
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(request["files"]))
    os.chdir(request["cwd"])
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ.clear()
    os.environ.update(request["environment"])
    own = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    rest = [one for one in sys.path[1:] if one not in before]
    sys.path[:] = [request["cwd"], *own, *(one for one in rest if one not in own)]
    module, *arguments = request["arguments"]
    if module.startswith("tests."):
        sys.argv[:] = [module, *arguments]
        return import_module(module).main
    for starts_others in STARTING_OTHERS:
        import_module(starts_others).subprocess = _Forks(address)
    sys.argv[:] = [module, *arguments]
    if module == "tenantry.front":
        return import_module("tenantry.front.__main__").main
    import_module("tenantry.process.startup_signals").hear(arguments)
    return import_module("tenantry.cli.main" if module == "tenantry" else module).main


class _Forks:
    """Stands for `subprocess` where the program starts others of its own."""

    DEVNULL, PIPE, STDOUT = subprocess.DEVNULL, subprocess.PIPE, subprocess.STDOUT
    TimeoutExpired = subprocess.TimeoutExpired

    def __init__(self, address: str) -> None:
        self._address = address

    def Popen(self, args: Sequence[str], **options: Any) -> Popen:  # noqa: N802
        return Popen(args, address=self._address, **options)


class _Leaving:
    """Ends a process that has done all an interpreter does at its end but take itself apart.

    For that every object is touched, and so all memory copied that a fork shares with the process
    it comes from: more than many a command takes. Threads have been joined and exit handlers run
    by then. What ends by an exception that nobody handles ends as it ever does.
    """

    def __init__(self) -> None:
        self._code: int | None = None
        atexit.register(self._leave)  # the first that is registered is the last that is called

    def after(self, work: Callable[[], object]) -> object:
        """Run the work, and give what is left to pass to `sys.exit`."""
        try:
            result = work()
        except SystemExit as ended:
            result = ended.code
        if result is None or isinstance(result, int):
            self._code = (result or 0) & 0xFF
        return result

    def _leave(self) -> None:
        if self._code is None:
            return
        for stream in (sys.stdout, sys.stderr):
            if stream is not None and not stream.closed:
                stream.flush()
        os._exit(self._code)


def main() -> object:
    """Load everything, say so, and fork."""
    leaving = _Leaving()
    for module in (*MODULES, *STARTING_OTHERS):
        import_module(module)
    for place in import_module("tenantry.cli.main").COMMANDS.values():
        import_module(f"tenantry.cli.{place.partition(':')[0]}")
    inspect.getsource(main)  # as FastAPI does for each route; the first time is the dearest
    server = Server(sys.argv[1])
    gc.collect()
    gc.freeze()
    os.write(1, b"loaded\n")
    return leaving.after(server.serve())


if __name__ == "__main__":
    # As a program's own last line does it: the interpreter ends in order.
    sys.exit(main())
