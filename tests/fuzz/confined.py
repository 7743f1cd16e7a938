"""A process that reads foreign files: each request in a fork with little memory, beside a folder it must not touch.

Speaks JSON, a line per request, over its standard input and output. Run as a file, by itself; see `Confined`.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SPARE = 1 << 30  # bytes beyond those that the size of a file explains
_SECONDS = 60
# audit events whose first arguments are paths
_PATHS = {
    *("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.truncate"),
    *("os.link", "os.symlink", "os.chmod", "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile"),
}
_COMMANDS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect", "socket.getaddrinfo"}


def photographs(path: Path) -> None:
    from substyle.pipelines.sources import describe, open_source

    source = open_source(path)
    print(describe(source))
    for i in range(min(4, len(source.records))):
        try:
            source.records[i].read()
        except OSError as error:
            print(f"quarantined: {error}")


def mend(store: Path) -> None:
    """Repair what a store notes as damaged, and read it, as `embed` does."""
    from substyle.engine.store import compaction
    from substyle.engine.store.store import EmbeddingStore
    from substyle.engine.store.table import load_table

    opened = EmbeddingStore.open(store)
    compaction.clear_leftovers(opened.path)
    opened.repair()
    for entry in opened.backbones():
        table = load_table(opened, entry.name)
        table.take(0, table.row_N[:0]) if len(table.keys) == 0 else table.x_TND[:, :1]


def probe(path: Path) -> None:
    from substyle.engine.probes.checkpoint import Probe

    Probe.load(path)


def onnx(path: Path) -> None:
    from substyle.engine.backbones import onnx_graph

    onnx_graph.load(f"onnx:{path}", str(path), canvas=32, batch=2)


def checkpoint(path: Path) -> None:
    from substyle.engine.backbones import weights

    weights.read_checkpoint("backbone", path)


CALLS: dict[str, Callable[[Path], None]] = {
    each.__name__: each for each in (photographs, mend, probe, onnx, checkpoint)
}
_BACKBONES = {"onnx", "checkpoint"}


def watch(folder: str, found: list[str]) -> None:
    """Record what this process does with files below a folder, and that it starts programs or connections."""
    real, busy = os.path.realpath(folder), [False]

    def hook(event: str, arguments: Sequence[Any]) -> None:
        if event in _COMMANDS:
            found.append(f"{event} {arguments!r}"[:200])
        if event not in _PATHS or busy[0]:
            return
        busy[0] = True
        try:
            for path in arguments[:2]:
                if isinstance(path, str | bytes | os.PathLike) and path:
                    there = os.path.realpath(os.fsdecode(path))
                    if there == real or there.startswith(f"{real}/"):
                        found.append(f"{event} {there}")
        finally:
            busy[0] = False

    sys.addaudithook(hook)


def run(request: dict[str, Any]) -> int:
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    sys.stdout = open(1, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    from substyle.engine import cli
    from substyle.errors import SubstyleError

    before = _memory("VmSize")
    most = before + SPARE + request["explained"]
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.alarm(_SECONDS)
    found: list[str] = []
    watch(request["watched"], found)
    try:
        call = CALLS.get(request["arguments"][0])
        if call is None:
            code = cli.main(request["arguments"])
        else:
            call(Path(request["arguments"][1]))
            code = 0
    except SubstyleError as error:
        print(f"substyle: {error}", file=sys.stderr)
        code = error.exit_code
    except SystemExit as stop:
        code = int(stop.code or 0)
    touched = list(found)  # the next lines open files
    report = {"touched": touched, "memory": _memory("VmPeak") - before}
    Path(f"{request['output']}.report").write_text(json.dumps(report))
    sys.stdout.flush()
    return code


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))


def serve() -> None:
    import numcodecs  # noqa: F401
    import pyarrow.dataset
    import pyarrow.parquet  # noqa: F401
    import torch
    import zarr  # noqa: F401

    from substyle.engine.commands import arguments, exchange, inspect, json_output, study  # noqa: F401
    from substyle.pipelines.transforms.registry import load_all

    load_all()
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request["arguments"][0] in _BACKBONES:  # imported once, by all that follow
            from timm import models  # noqa: F401

            from substyle.engine.backbones import onnx_graph  # noqa: F401
        pid = os.fork()
        if pid == 0:
            try:
                os._exit(run(request))
            except BaseException:  # noqa: BLE001 (of a bug: the test shows it)
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(99)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    serve()
