"""Where shards are embedded, as a study or the command line says."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from dataclasses import dataclass

import torch

from substyle.engine.embed_config import EmbedConfig
from substyle.engine.precision import AUTO
from substyle.kernels.errors import ConfigError

LOCAL, RAY = "local", "ray"
KINDS = (LOCAL, RAY)
_CPU_OR_GPU = (AUTO, "cpu", "cuda")


@dataclass(frozen=True)
class ExecutorConfig:
    """Where shards are embedded.

    Attributes:
        kind: ``local``: in this process; ``ray``: by workers of a Ray cluster, each of which has a GPU or, on CPUs,
            ``embed.threads`` cores to itself.
        address: of a Ray cluster that runs, ``host:port``, or ``auto`` for the one of this machine; left out, it is
            $RAY_ADDRESS, and without that a Ray of this run's own, on this machine alone.
        workers: how many; 0: as many as there is room for.
        retries: how often a shard is given out again, to another worker where there is one, after its worker has died
            or failed.
    """

    kind: str = LOCAL
    address: str = ""
    workers: int = 0
    retries: int = 2

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("executor.kind", self.kind, ", ".join(KINDS))
        if not 0 <= self.workers <= 65536:
            raise ConfigError("executor.workers", self.workers, "0 (as many as there is room for) to 65536")
        if not 0 <= self.retries <= 100:
            raise ConfigError("executor.retries", self.retries, "0 to 100")
        if self.kind == LOCAL and (self.address or self.workers):
            name = "address" if self.address else "workers"
            raise ConfigError(f"executor.{name}", getattr(self, name), f'only with executor.kind = "{RAY}"')
        if "://" in self.address:
            raise ConfigError("executor.address", self.address, "auto or host:port, as `ray start` prints it")

    @property
    def joins(self) -> str:
        """Address of the cluster to join; empty for a Ray of one's own."""
        address = self.address or os.environ.get("RAY_ADDRESS", "")
        return "" if address == "local" else address

    def here(self, config: EmbedConfig, shard_rows: int = 0) -> EmbedConfig:
        """`EmbedConfig.here` for this executor: with Ray, threads are those of one worker.

        Raises:
            ConfigError: what is asked for is not there.
        """
        if self.kind == LOCAL:
            return config.here(shard_rows)
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("executor.kind", RAY, f"{LOCAL}; ray is not installed: it comes with the extra ray")
        if config.device not in _CPU_OR_GPU:
            raise ConfigError("embed.device", config.device, f"{', '.join(_CPU_OR_GPU)} with Ray, which chooses GPUs")
        found = config.here(shard_rows)
        return dataclasses.replace(found, threads=config.threads or self._share(found))

    def _share(self, config: EmbedConfig) -> int:
        """Cores of a worker where none are asked for: each of this machine's workers has as many."""
        here = 1 if self.joins else self.workers
        workers = torch.cuda.device_count() if config.on_gpu else here
        return max(config.cores // max(workers, 1), 1)


HERE = ExecutorConfig()
