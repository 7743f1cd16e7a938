"""C kernels, compiled on first use and cached. Without a compiler, callers fall back to numpy or torch.

A kernel is a C file in this folder. It is compiled with $CC, cc, gcc or clang for the machine's instruction set, in
about a second.
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

from substyle import files
from substyle.kernels import cpu

_FLAGS = ("-O3", "-march=native", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
_X86 = ("-mprefer-vector-width=512",)  # gcc halves its vectors otherwise
_SECONDS = 120.0


@cache
def load(name: str) -> ctypes.CDLL | None:
    """Load the compiled ``<name>.c``; None without a compiler that makes it.

    Raises UnsafeFileError if other users can change it.
    """
    try:
        path = _compiled(Path(__file__).with_name(f"{name}.c"))
        return ctypes.CDLL(str(files.require_private(path)))
    except (OSError, subprocess.SubprocessError):
        return None


def _compiled(source: Path) -> Path:
    """The shared library of a C file, compiled if missing. Safe for concurrent processes.

    Raises UnsafeFileError if other users can change its folder.
    """
    command = _compiler()
    flags = [*_FLAGS, *(_X86 if platform.machine() in ("x86_64", "AMD64") else ())]
    facts = [source.read_text(), *command, *flags, _run([*command, "--version"]), cpu.identity()]
    digest = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:24]
    path = files.cache_folder("native") / f"{source.stem}-{digest}.so"
    if path.is_file():
        return path
    with files.scratch(path.parent) as place:
        made = place / "whole.so"
        _run([*command, *flags, "-shared", str(source), "-o", str(made)])
        return files.write(path, made.read_bytes(), mode=0o600)


def _compiler() -> list[str]:
    named = os.environ.get("CC")
    for candidate in (named,) if named else ("cc", "gcc", "clang"):
        command = shlex.split(candidate)
        if command and shutil.which(command[0]):
            return command
    raise FileNotFoundError("no C compiler")


def _run(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True).stdout
