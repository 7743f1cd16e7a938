"""Commands `share rows`, `share site` and `share push`: rows of results that travel, and a static site of them."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from substyle.engine.commands.json_output import printable
from substyle.engine.extensions.site.directory import add_rows, read_directory, rows_of_run
from substyle.engine.extensions.site.row import row_schema
from substyle.engine.extensions.site.site import write_site
from substyle.engine.study import hub
from substyle.errors import ConfigError, MissingError


def rows(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle share rows add RUN… --to DIR`, `… pull DIR… --to DIR`, `… check DIR…`, `… schema`."""
    if options.action == "schema":
        made = row_schema()
        print(json.dumps(made, indent=2, ensure_ascii=False))
        return made
    if not options.sources:
        raise MissingError("SOURCE", f"what {options.action} reads")
    if options.action == "check":
        return _check(options)
    if options.to is None:
        raise MissingError("--to", f"the directory to which {options.action} writes")
    bad: dict[str, str] = {}
    found = []
    for source in options.sources:
        if options.action == "add":
            found += rows_of_run(source)
        else:
            contents = read_directory(source, "SOURCE")
            found += contents.rows.values()
            bad |= {str(source / name): reason for name, reason in contents.bad.items()}
    done = add_rows(found, options.to)
    for name in done.added:
        print(f"added {name}")
    _name(bad)
    _name(done.refused)
    added = _counted(len(done.added), "row")
    print(f"{options.to}: {added} added, {len(done.unchanged)} unchanged, {len(done.refused)} refused")
    return {"to": str(options.to), **asdict(done), "bad": bad, "ok": not (bad or done.refused)}


def _check(options: argparse.Namespace) -> dict[str, Any]:
    if options.to is not None:
        raise ConfigError("--to", str(options.to), "only with add and pull")
    found = {source: read_directory(source) for source in options.sources}
    bad = {str(source / name): reason for source, own in found.items() for name, reason in own.bad.items()}
    _name(bad)
    count = sum(len(own.rows) for own in found.values())
    print(f"{_counted(count, 'valid row')}, {_counted(len(bad), 'bad file')}")
    return {"rows": count, "bad": bad, "ok": not bad}


def _name(bad: dict[str, str]) -> None:
    for name, reason in bad.items():
        print(printable(f"{name}: {reason}"), file=sys.stderr)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' if number != 1 else ''}"


def site(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle share site SOURCE… --out DIR`."""
    made = write_site(options.sources, options.out, photographs=not options.without_photographs)
    _name(made.bad)
    parts = _counted(made.rows, "row"), _counted(made.tables, "table"), _counted(made.pages, "page")
    print(f"{made.index}: {parts[0]} in {parts[1]}, {parts[2]}")
    return {**asdict(made), "index": str(made.index), "ok": not made.bad}


def push(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle share push RUN --repo USER/NAME`."""
    texts = {row.path: row.text().encode() for row in rows_of_run(options.run)}
    address = hub.push(options.run, options.repo, private=options.private, rows=texts)
    print(f"uploaded: {address}")
    return {"commit": address}
