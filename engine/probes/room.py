"""How the embeddings of a backbone are held where probes train, and the memory that takes.

`float16` holds them as they are stored (float32 where the store's dtype is that), `int8` as whole numbers with a
float32 factor for each row, `streamed` reads rows of the next steps into a buffer while earlier ones are learned.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from substyle.kernels.errors import ConfigError

FLOAT16, INT8, STREAMED = "float16", "int8", "streamed"
HOW = (FLOAT16, INT8, STREAMED)  # the first that has room
SHARE = 0.8  # of the free memory that embeddings may take: heads, activations and batches want some
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def row_bytes(how: str, width: int, itemsize: int = 2) -> int:
    """Bytes of one row; of a streamed one as it lies in the buffer."""
    return width + 4 if how == INT8 else width * itemsize


@dataclass(frozen=True)
class Room:
    """Embeddings and the memory they are for.

    Attributes:
        shape: (T, N, D).
        itemsize: bytes of a stored number.
        free: bytes that are free on the device.
        buffer: bytes of a streamed table's buffer.
        device: name of the device.
    """

    shape: tuple[int, ...]
    itemsize: int
    free: int
    buffer: int
    device: str

    def needs(self, how: str) -> int:
        """Bytes on the device."""
        variants, images, width = self.shape
        return self.buffer if how == STREAMED else variants * images * row_bytes(how, width, self.itemsize)

    def fits(self, how: str) -> bool:
        """Whether they may be held so."""
        return self.needs(how) <= SHARE * self.free

    def choose(self, asked: str) -> str:
        """How they are held: as asked for, or for ``auto`` the first way that fits.

        Raises:
            ConfigError: it does not fit; the message has the numbers.
        """
        chosen = next((how for how in HOW if self.fits(how)), STREAMED) if asked == "auto" else asked
        if not self.fits(chosen):
            field, given = ("stream_buffer", self.buffer) if chosen == STREAMED else ("table", asked)
            others = [how for how in HOW if self.fits(how)]
            allowed = f"what fits: {', '.join(others) or 'nothing'}" if field == "table" else "what fits"
            raise ConfigError(f"probes.{field}", given, f"{allowed} ({self.words(chosen)})")
        return chosen

    def words(self, how: str) -> str:
        """The arithmetic, to be shown."""
        variants, images, width = self.shape
        factors = f"{images:,} images × {variants} variants × {width}"
        need, free = f"{self.needs(how) / 1e9:.2f} GB", f"{SHARE:.0%} of {self.free / 1e9:.2f} GB free on {self.device}"
        if how == STREAMED:
            whole = self.needs(FLOAT16) / 1e9
            return f"streamed: {factors} × {self.itemsize} bytes = {whole:.2f} GB, through a buffer of {need}; {free}"
        each = f"({width} + 4) bytes" if how == INT8 else f"{width} × {self.itemsize} bytes"
        return f"{how}: {images:,} images × {variants} variants × {each} = {need}; {free}"


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be had: of a GPU those that its driver and torch's own store have, else the host's."""
    if device.type == "cuda":
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + reserved
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    free += [int(line.split()[1]) << 10 for line in _lines(_MEMINFO) if line.startswith("MemAvailable:")]
    most = _lines(_CGROUP / "memory.max")
    if most and most[0].isdigit():  # what a container may take; its cached files give way
        used = [
            int(line.split()[1]) for line in _lines(_CGROUP / "memory.stat") if line.startswith(("anon ", "shmem "))
        ]
        free.append(max(int(most[0]) - sum(used), 0))
    return min(free)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
