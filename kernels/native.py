"""C kernels, compiled on first use and cached. Without a compiler, callers fall back to numpy or torch.

A kernel is a C file in this folder. It is compiled with $CC, cc, gcc or clang for the machine's instruction set, in
about a second, and linked to the OpenMP library that torch has loaded, so that both share one thread pool.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from functools import cache
from pathlib import Path

import torch

from substyle.kernels import cpu, files

_FLAGS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_X86 = ("-mprefer-vector-width=512",)  # gcc halves its vectors otherwise
_SECONDS = 120.0


class Unavailable(Exception):
    """Reason why there is no compiled kernel; never leaves this module."""


def load(name: str) -> ctypes.CDLL | None:
    """Load the compiled ``<name>.c``; None if unavailable (see :func:`state`)."""
    return _loaded(name)[0]


def state(name: str) -> str:
    """Path of the compiled kernel, or why there is none."""
    return _loaded(name)[1]


@cache
def _loaded(name: str) -> tuple[ctypes.CDLL | None, str]:
    try:
        path = _compiled(Path(__file__).with_name(f"{name}.c"))
        return ctypes.CDLL(str(files.require_private(path))), str(path)
    except (Unavailable, OSError) as error:
        return None, f"no compiled kernel: {error}"


def _compiled(source: Path) -> Path:
    """The shared library of a C file, compiled if missing. Safe for concurrent processes.

    Raises UnsafeFileError if other users can change its folder.
    """
    if not source.is_file():
        raise Unavailable(f"{source} is missing")
    command = _compiler()
    openmp = _openmp()
    flags = [*_FLAGS, *(_X86 if platform.machine() in ("x86_64", "AMD64") else ())]
    facts = [source.read_text(), *command, *flags, _version(command), openmp.name, cpu.identity()]
    digest = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:24]
    path = files.cache_folder("native") / f"{source.stem}-{digest}.so"
    if path.is_file():
        return path
    with files.scratch(path.parent) as place:
        parts = place / "part.o", place / "whole.so"
        _run([*command, *flags, "-c", str(source), "-o", str(parts[0])])
        # by path: -fopenmp would link the compiler's OpenMP library, with its own threads
        _run([*command, "-shared", str(parts[0]), str(openmp), "-lm", "-o", str(parts[1])])
        return files.write(path, parts[1].read_bytes(), mode=0o600)


def _compiler() -> list[str]:
    named = os.environ.get("CC")
    for candidate in (named,) if named else ("cc", "gcc", "clang"):
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise Unavailable(f"C compiler not found {named or ''}".strip())


def _openmp() -> Path:
    """The GNU OpenMP library that torch has loaded."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        raise Unavailable("/proc/self/maps is required to find torch's OpenMP library")
    packages = Path(torch.__file__).parents[1]
    loaded = {Path(line.split(maxsplit=5)[5].strip()) for line in maps.read_text().splitlines() if "libgomp" in line}
    ours = [path for path in loaded if path.parent in (packages / "torch" / "lib", packages / "torch.libs")]
    if not ours and len(loaded) == 1:  # torch built against the system library
        ours = list(loaded)
    if not ours:
        raise Unavailable("torch does not use GNU OpenMP")
    return sorted(ours)[0]


def _version(command: list[str]) -> str:
    return _run([*command, "--version"])


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} took more than {_SECONDS:.0f} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise Unavailable(f"{command[0]} failed: {lines[0]}")
    return done.stdout
