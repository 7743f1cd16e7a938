"""Start runs of the command as real processes, stop them, and see how they ended."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from tests.crash import warm

PATIENCE_S = 600.0  # after which a run counts as hung, on a busy machine too
_REAPED_S = 10.0  # until init has collected a killed run's own children, which count as processes so long


@dataclass(frozen=True)
class Fault:
    """What happens to a run at its ``at``-th change (or reading) below ``root``; see `faults.install`."""

    root: str
    at: int
    action: str
    reads: bool = False


@dataclass(frozen=True)
class Limits:
    """What a run is held to: bytes that a file may have, permission bits even if it is root's, a fault."""

    file_size: int | None = None
    unprivileged: bool = False
    fault: Fault | None = None


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code (minus the signal's number when killed), stdout, stderr, changes it made."""

    code: int
    out: str
    err: str
    changes: tuple[str, ...]

    @property
    def answer(self) -> dict[str, Any]:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def said(self) -> list[str]:
        """Lines of stderr, but for the one that tells what was understood of the photographs."""
        lines = [line for line in self.err.splitlines() if line]
        return [line for line in lines if not re.match(r"folder .*: [0-9,]+ images?, ", line)]

    def require(self, code: int, *messages: str) -> Ended:
        """Assert its exit code, that no traceback is there, and what stderr holds. Returns itself."""
        shown = (
            f"exit {self.code}\n--- stdout\n{self.out}\n--- stderr\n{self.err}\n--- last change: {self.changes[-1:]}"
        )
        assert self.code == code, f"exit {code} was expected: {shown}"
        assert "Traceback" not in self.err, shown
        for message in messages:
            assert message in self.err, f"{message!r} is not in stderr: {shown}"
        return self


class Run:
    """A run that goes on: its process number, and a way to ask for its exit code."""

    def __init__(self, pid: int, poll: Callable[[], int | None], pipes: Sequence[int]) -> None:
        self.pid, self.poll, self._pipes = pid, poll, pipes

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, seconds: float = PATIENCE_S) -> Ended:
        """Wait for its end. Fails when it hangs."""
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"process {self.pid} still runs after {seconds:.0f} s")
            time.sleep(0.004)
        texts = [_drain(pipe) for pipe in self._pipes]
        changes = texts[2].splitlines() if len(texts) > 2 else []
        return Ended(code, texts[0], texts[1], tuple(changes))

    def kill(self) -> Ended:
        """SIGKILL to its process group; nothing of the group is left."""
        self.signal(signal.SIGKILL)
        ended = self.wait()
        end = time.monotonic() + _REAPED_S
        while time.monotonic() < end:
            try:
                os.killpg(self.pid, 0)
            except ProcessLookupError:
                return ended
            time.sleep(0.01)
        raise AssertionError(f"a process of group {self.pid} outlived SIGKILL")

    def running(self) -> bool:
        return self.poll() is None


class Start(Protocol):
    def __call__(self, arguments: Sequence[str], limits: Limits = ...) -> Run: ...


def cold(arguments: Sequence[str], limits: Limits = Limits()) -> Run:
    assert limits == Limits(), "only warm runs have limits"
    (out, out_end), (err, err_end) = os.pipe(), os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "substyle.engine.cli", *arguments],
        stdin=subprocess.DEVNULL, stdout=out_end, stderr=err_end, start_new_session=True,
    )  # fmt: skip
    os.close(out_end)
    os.close(err_end)
    return Run(process.pid, process.poll, (out, err))


class Warm:
    """Starts runs as forks of a process that has the imports behind it; see `warm`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._codes: dict[int, int] = {}

    def __call__(self, arguments: Sequence[str], limits: Limits = Limits()) -> Run:
        return self._start({"arguments": list(arguments)}, limits)

    def table(self, store: Path, backbone: str, fault: Fault) -> Run:
        """Fork a process that reads a table and prints it as JSON; see `warm.show`."""
        return self._start({"table": [str(store), backbone]}, Limits(fault=fault))

    def _start(self, task: dict[str, Any], limits: Limits) -> Run:
        pairs = [os.pipe() for _ in range(3 if limits.fault else 2)]
        pid = self._ask({**task, **asdict(limits)}, [end for _, end in pairs])["pid"]
        for _, end in pairs:
            os.close(end)
        self._codes.pop(pid, None)  # numbers of processes come again: an earlier one's end is not this one's
        return Run(pid, lambda: self._poll(pid), [pipe for pipe, _ in pairs])

    def _poll(self, pid: int) -> int | None:
        if pid not in self._codes:
            code = self._ask({"poll": pid})["code"]
            if code is None:
                return None
            self._codes[pid] = code
        return self._codes[pid]

    def _ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> dict[str, Any]:
        socket.send_fds(self._connection, [json.dumps(request).encode()], descriptors)
        answer: dict[str, Any] = json.loads(self._connection.recv(1 << 16))
        return answer


@contextmanager
def warm_start() -> Iterator[Warm]:
    """A `Warm` for the block."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    alone = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    server = subprocess.Popen(
        [sys.executable, str(Path(warm.__file__)), str(there.fileno())],
        pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, start_new_session=True, env={**os.environ, **alone},
    )  # fmt: skip
    there.close()
    try:
        ready = here.recv(1 << 16)
        assert ready, "the warm process ended at its start"
        yield Warm(here)
    finally:
        here.close()
        server.wait()


def _drain(pipe: int) -> str:
    with open(pipe, "rb") as file:
        return file.read().decode(errors="replace")
