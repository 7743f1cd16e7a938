"""A process that has imported the command once and forks a run for every request: real processes, quick to start.

Speaks JSON over a socket whose descriptor is its argument; see `harness.Warm`. Run as a file, by itself.
"""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from substyle.engine.store.table import EmbeddingTable


def prepare() -> None:
    """Import what a run imports, and start no thread: a fork takes only the thread that calls it along."""
    import optree  # noqa: F401
    import pyarrow.dataset  # noqa: F401
    import torch
    from nvidia.dali import fn  # noqa: F401

    from substyle.engine import cli  # noqa: F401
    from substyle.engine.backbones.families import controls  # noqa: F401
    from substyle.engine.commands import arguments, json_output, study  # noqa: F401
    from substyle.engine.store import compaction
    from substyle.kernels.tables import normal_quantiles
    from substyle.pipelines.transforms.registry import load_all

    compaction.RECORDS, compaction.LOOK_RECORDS = 256, 16  # so that runs of tests reach it
    load_all()
    normal_quantiles()  # a third of the time of a run
    torch.set_num_threads(1)
    tasks = Path("/proc/self/task")
    threads = [path.read_text().strip() for path in tasks.glob("*/comm") if path.parent.name != str(os.getpid())]
    # jemalloc starts its own again after a fork
    if others := [name for name in threads if name != "jemalloc_bg_thd"]:
        raise SystemExit(f"threads run after the imports, and a fork would lose them: {others}")
    gc.collect()
    gc.freeze()  # at its end a fork would look through all that was imported, which takes a second


def serve(connection: socket.socket) -> dict[str, Any]:
    """Answer requests until the other end closes. Returns only in a forked child: what that is to run."""
    children: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        if not message:
            for child in children:
                os.killpg(child, signal.SIGKILL)
            os._exit(0)
        request = json.loads(message)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            children.discard(pid)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        else:
            pid = os.fork()
            if pid == 0:
                connection.close()
                become(request, descriptors)
                return dict(request)
            children.add(pid)
            answer = {"pid": pid}
        for descriptor in descriptors:
            os.close(descriptor)
        connection.send(json.dumps(answer).encode())


def become(options: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
    """In a child: be a process group of its own with the limits and the fault that are asked for."""
    if descriptors:
        os.setsid()
        null = os.open(os.devnull, os.O_RDONLY)
        for descriptor, target in zip((null, *descriptors), (0, 1, 2), strict=False):
            os.dup2(descriptor, target)
        # what is buffered by these knows nothing of another file behind its descriptor
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if options.get("file_size") is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["file_size"], options["file_size"]))
    if options.get("unprivileged"):
        give_up_privileges()
    if options.get("fault"):
        sys.path.insert(0, str(Path(__file__).parent))  # PYTHONSAFEPATH, which Ray is given, leaves it out
        import faults  # type: ignore[import-not-found]

        faults.install(**options["fault"], log=os.dup(descriptors[2]))


def give_up_privileges() -> None:
    """Let permission bits bind root too, as they bind everyone else (capset(2), version 3)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    none = (ctypes.c_uint32 * 6)()
    if os.geteuid() == 0 and ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def show(store: str, backbone: str) -> None:
    """Read a table and print the digest of every embedding by transformation and key, or what the store said."""
    from substyle.engine.store.layout import StoreError
    from substyle.engine.store.store import EmbeddingStore
    from substyle.engine.store.table import load_table

    try:
        table = load_table(EmbeddingStore.open(Path(store)), backbone)
    except StoreError as error:
        print(json.dumps({"error": str(error)}))
        return
    print(json.dumps({"rows": digests(table)}))


def digests(table: EmbeddingTable) -> dict[str, dict[str, str]]:
    return {
        name: {key: hashlib.sha256(x_D.tobytes()).hexdigest() for key, x_D in zip(table.keys, x_ND, strict=True)}
        for name, x_ND in zip(table.transformations, table.x_TND, strict=True)
    }


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # on any core: on its worker's, beside a reader that never rests, a run takes ten times as long
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    end = socket.socket(fileno=int(sys.argv[1]))
    prepare()
    end.send(b'{"ready": true}')
    task = serve(end)
    if "table" in task:
        show(*task["table"])
        sys.exit(0)
    from substyle.engine.cli import main

    sys.argv = ["substyle", *task["arguments"]]
    sys.exit(main(task["arguments"]))
