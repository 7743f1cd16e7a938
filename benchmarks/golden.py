"""Does this code compute what another version computes?

    python -m benchmarks.golden record OUT [--python PYTHON] [--limit N]
    python -m benchmarks.golden compare OLD NEW

``record`` writes what `golden.toml`, which has all stages on but labels and domains, computes from photographs that
packages ship: pixels of all variants, embeddings, results.json and the report. ``--python`` is the interpreter of
another installation, such as that of a checkout of an older commit. Bytes and pixels depend on the processor, so record
both on one machine.

``compare`` compares pixels and embeddings byte for byte, and each field of results.json and each line of the report.
It prints what differs and fails if anything does. Times, versions and digests are not compared.
"""

from __future__ import annotations

import argparse
import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from substyle.files import file_hash

STUDY = Path(__file__).with_name("golden.toml")
COMMAND = "substyle.engine.cli"
PHOTOGRAPHS = 32  # whose variants are compared
# names of networks that a run has trained have digests, also of the store
TRAINED = re.compile(r"[0-9a-f]{16}(?=\.safetensors)|(?<=\.safetensors)-[0-9a-f]{8}|(?<=adapter )[0-9a-f]{16}")
# entries of results.json that differ between runs of the same code, and lines of the report that show them
VARYING = re.compile(
    r"^/(created|version|environment|throughput|stamps|checksum|identity|study/path)(/|$)"
    r"|^/backbones/.*/(gate|cost|weights_hash)(/|$)|/(seconds|rate|seconds_per_image)$"
)
SHOWN = re.compile(r"\d\d:\d\d|\d ?(s|ms|min|h)\b|/s\b|\d{4}-\d\d-\d\d|[0-9a-f]{8,}|/tmp")


def record(out: Path, python: str, limit: int) -> None:
    """Run the study with the code of an installation, and write what is compared."""
    out.mkdir(parents=True)
    study = out / STUDY.name
    text = STUDY.read_text()
    study.write_text(re.sub(r"(?m)^limit = .*", f"limit = {limit}", text) if limit else text)
    for arguments in (
        ["substyle.pipelines.packaged_photographs", "photographs"],
        [COMMAND, "run", study.name, "--images", "photographs", "--out", "run", "--quiet"],
        [COMMAND, "export", "run/store.zarr", "--to", "numpy", "--out", "embeddings"],
        [COMMAND, "variants", "photographs", "--out", "variants", "--set", f"limit={PHOTOGRAPHS}"],
    ):
        subprocess.run([python, "-m", *arguments], check=True, cwd=out)  # names of trained networks have a path
    for name in ("results.json", "report.html"):
        shutil.copy(out / "run" / name, out / name)


def compare(old: Path, new: Path) -> list[str]:
    """What differs between two records."""
    differing = []
    for folder, pattern in (("variants", "*.png"), ("embeddings", "*.npy")):
        found = [
            {TRAINED.sub("", str(path.relative_to(each))): file_hash(path) for path in (each / folder).rglob(pattern)}
            for each in (old, new)
        ]
        differing += different(folder, *found)
    documents = [TRAINED.sub("", (each / "results.json").read_text()) for each in (old, new)]
    fields = [dict(leaves(json.loads(text))) for text in documents]
    differing += different("results.json", *fields)
    lines = [Counter(shown(each / "report.html")) for each in (old, new)]  # in any order
    return differing + different("report.html", *lines)


def different(what: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    found = [f"{what}: {path}: {old.get(path)!r} → {new.get(path)!r}" for path in {**old, **new}
             if path not in old or path not in new or old[path] != new[path]]  # fmt: skip
    print(f"{what}: {len({**old, **new}) - len(found)} of {len({**old, **new})} entries equal")
    return found if old and new else [*found, f"{what}: nothing to compare"]


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - JSON
    """Values of a JSON document by path, but those of `VARYING`."""
    if VARYING.search(path):
        return
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if entries is None:
        yield path, value
        return
    for key, inner in entries:
        yield from leaves(inner, f"{path}/{key}")


def shown(page: Path) -> list[str]:
    """Lines of a report without those that state times, versions or folders, and bare numbers, which are fields."""
    text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", "\0", TRAINED.sub("", page.read_text()), flags=re.DOTALL)
    lines = [" ".join(line.split()) for line in html.unescape(text).split("\0") if line.strip()]
    return [line for line in lines if not SHOWN.search(line) and not re.fullmatch(r"[-+\d., e×%]*", line)]


def main() -> int:
    parser = argparse.ArgumentParser(prog="golden", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("record")
    one.add_argument("out", type=Path)
    one.add_argument("--python", type=os.path.abspath, default=sys.executable)  # the link of a virtual environment
    one.add_argument("--limit", type=int, default=0)
    two = commands.add_parser("compare")
    two.add_argument("old", type=Path)
    two.add_argument("new", type=Path)
    options = parser.parse_args()
    if options.command == "record":
        record(options.out, options.python, options.limit)
        return 0
    differing = compare(options.old, options.new)
    print("\n".join(differing))
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
