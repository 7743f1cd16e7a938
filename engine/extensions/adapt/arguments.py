"""Arguments of the command `adapt`."""

from __future__ import annotations

import argparse

from substyle.engine.commands.arguments import OF_STUDY, command, local, of_study, photographs, place


@command(
    "adapt",
    "substyle.engine.extensions.adapt.command",
    "train an adapter that keeps style and class, and apply it to a store",
)
def _adapt(adapt: argparse.ArgumentParser) -> None:
    adapt.add_argument("store", type=place, metavar="STORE", help="store with embeddings of the backbone")
    which = adapt.add_mutually_exclusive_group(required=True)
    which.add_argument("--backbone", metavar="NAME", help="backbone to adapt")
    which.add_argument("--adapter", type=local, metavar="FILE", help="apply this adapter instead of training one")
    adapt.add_argument("--method", choices=("multitask", "pisco"), default="multitask", help="method (multitask)")
    adapt.add_argument("--study", type=local, metavar="STUDY", help="study with settings in [adapt] and [probes]")
    adapt.add_argument("--images", type=photographs, metavar="IMAGES", help=OF_STUDY)
    of_study(adapt)
    adapt.add_argument("--out", type=local, metavar="DIR", help="output folder (that of the store's run)")
