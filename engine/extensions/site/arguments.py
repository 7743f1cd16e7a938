"""Arguments of `share rows`, `share site` and `share push`."""

from __future__ import annotations

import argparse

from substyle.engine.commands.arguments import command, local, plugins

_MODULE = "substyle.engine.extensions.site.commands"


@command("share rows", _MODULE, "add results of runs to a directory that travels, copy its rows, and check it")
def _rows(rows: argparse.ArgumentParser) -> None:
    plugins(rows)
    rows.add_argument(
        "action",
        choices=("add", "pull", "check", "schema"),
        help="add the rows of runs, copy the valid rows of other directories, check files, or print their JSON Schema",
    )
    text = "output folders of runs (add), or directories of results (pull, check)"
    rows.add_argument("sources", type=local, nargs="*", metavar="SOURCE", help=text)
    rows.add_argument("--to", type=local, metavar="DIR", help="directory to add rows to, for add and pull")


@command("share site", _MODULE, "write a static site of runs and directories of results")
def _site(site: argparse.ArgumentParser) -> None:
    plugins(site)
    text = "output folders of runs, or directories of results"
    site.add_argument("sources", type=local, nargs="+", metavar="SOURCE", help=text)
    site.add_argument("--out", type=local, required=True, metavar="DIR", help="folder of the site; other files stay")
    site.add_argument("--without-photographs", action="store_true", help="show no photographs of runs")


@command("share push", _MODULE, "upload report, tables and probes of a run to the Hugging Face Hub")
def _push(push: argparse.ArgumentParser) -> None:
    push.add_argument("run", type=local, metavar="RUN", help="output folder of a run")
    push.add_argument("--repo", required=True, metavar="USER/NAME", help="repository, created if missing")
    push.add_argument("--private", action="store_true", help="make a new repository private")
