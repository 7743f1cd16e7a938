"""Connection to a Ray cluster."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from substyle import files
from substyle.engine.config import ExecutorConfig
from substyle.errors import ConfigError, SubstyleError

NAMESPACE = "substyle"
_OBJECT_STORE = 80 << 20  # bytes, near the least that Ray takes: nothing of size is put there
_PATIENCE_S = 20.0
_FOLDER = Path("/tmp")  # paths of Ray's sockets below it must stay shorter than 108 bytes, whatever $TMPDIR is


class ClusterError(SubstyleError):
    """A Ray cluster cannot be started or joined, or has no room for a worker."""


@dataclass
class Cluster:
    """A cluster that this process has joined.

    Attributes:
        own: whether this run has started it; logs: its folder then, which goes with it unless `keep_logs`.
        need: resources of one worker.
    """

    own: bool
    need: Mapping[str, float]
    logs: str = ""
    keep_logs: bool = False

    def places(self) -> int:
        """How many workers its machines have room for, were they idle."""
        import ray

        machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return sum(min(int(free.get(what, 0) // much) for what, much in self.need.items()) for free in machines)

    def workers(self, config: ExecutorConfig, most: int) -> int:
        """How many to start.

        Args:
            most: more have nothing to do.

        Raises:
            ConfigError: more than this machine has room for; a cluster may grow, and so is not asked.
            ClusterError: there is no room for one.
        """
        room = self.places()
        if self.own and config.workers > room:
            raise ConfigError("executor.workers", config.workers, f"0 to {room} here, each with {self.words}")
        if not room and not config.workers:
            raise ClusterError(f"no machine of the Ray cluster has room for a worker with {self.words}")
        return min(config.workers or room, most)

    @property
    def words(self) -> str:
        """What one worker needs, for people."""
        return " and ".join(f"{much:g} {what}" for what, much in self.need.items())


@contextmanager
def joined(config: ExecutorConfig, need: Mapping[str, float], *, cpus: int = 0) -> Iterator[Cluster]:
    """A cluster for the block. One of our own ends with it; a process that is connected already stays so.

    Args:
        need: resources of one worker, by Ray's names.
        cpus: of a cluster of one's own; 0 for those that this process may run on.

    Raises:
        ClusterError: it cannot be reached or started.
    """
    with _environment(own=not config.joins):
        import ray

        if ray.is_initialized():
            yield Cluster(False, need)
            return
        cluster = Cluster(not config.joins, need)
        if cluster.own:
            cluster.logs = str(files.temporary_folder(_FOLDER, "substyle-ray-"))
        try:
            with _terminable():
                _connect(config, cluster, cpus or len(os.sched_getaffinity(0)))
            yield cluster
        finally:
            ray.shutdown()
            if cluster.keep_logs and cluster.logs:
                print(f"Ray's logs are kept in {cluster.logs}", file=sys.stderr)
            elif cluster.logs:
                # a process of Ray's may be writing its last words
                files.remove(Path(cluster.logs), ignore_errors=True)


def _connect(config: ExecutorConfig, cluster: Cluster, cpus: int) -> None:
    import ray
    from ray.job_config import JobConfig

    class Installed(JobConfig):  # type: ignore[misc]
        """Workers import what is installed, and not first what is in the folders that this process runs in."""

        def _runtime_env_has_working_dir(self) -> bool:  # Ray's reason to leave those folders out
            return True

    common = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR", "job_config": Installed()}
    try:
        if config.joins:
            _reach(config.joins)
            ray.init(address=config.joins, **common)
        else:
            ray.init(
                address="local",
                num_cpus=cpus,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE,
                _node_ip_address="127.0.0.1",
                _temp_dir=f"{cluster.logs}/r",  # Ray gives it mode 0777; the folder around it stays private
                **common,
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"at {config.joins}" if config.joins else "on this machine"
        raise ClusterError(f"Ray {where} cannot be used: {error}") from error


def _reach(address: str) -> None:
    """Raise OSError where nobody listens at ``host:port``: Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE_S).close()


@contextmanager
def _environment(*, own: bool) -> Iterator[None]:
    """Ray reads these when it is imported or started. What the user has set stays as it is.

    A Ray of our own sends no statistics and listens on the loopback alone. There too other users of the machine could
    run code in our name: it asks for a token, which stays in memory instead of a file in the home folder.
    """
    if not own:
        yield
        return
    ours = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's name for "other machines may join", on Linux too
        "PYTHONSAFEPATH": "1",  # of its processes: they import nothing from the current folder
        **({} if "RAY_AUTH_MODE" in os.environ else {"RAY_AUTH_TOKEN": _token()}),
    }
    before = {name: os.environ.get(name) for name in (*ours, "RAY_AUTH_MODE")}  # Ray sets the mode by itself
    os.environ.update({name: value for name, value in ours.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


@cache
def _token() -> str:
    return secrets.token_hex(32)  # one for the life of the process, because Ray reads it only once


@contextmanager
def _terminable() -> Iterator[None]:
    """Ray takes SIGTERM for itself; after the block it means again what it did."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
