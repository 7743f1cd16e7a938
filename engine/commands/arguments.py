"""What the command line takes: every command, its options, and the module it runs in. Imports nothing heavy."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from substyle import __version__


class BadUsage(SystemExit):
    """The arguments do not parse; argparse has printed why."""

    def __init__(self, message: str, field: str | None) -> None:
        super().__init__(2)
        self.message = message
        self.field = field


class _Parser(argparse.ArgumentParser):
    """A parser whose errors can be reported as JSON too."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message as argparse does, then raise BadUsage."""
        cause = sys.exc_info()[1]  # argparse calls this while it handles the error
        field = cause.argument_name if isinstance(cause, argparse.ArgumentError) else None
        if missing := re.search(r"arguments are required: ([^\s,]+)$", message):
            field = missing[1]
        self.print_usage(sys.stderr)
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise BadUsage(message, field)


def _whole(low: int, high: int, *, multiple: int = 1) -> Callable[[str], int]:
    """A check of an argument: a whole number from low to high, a multiple of another."""

    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high or number % multiple:
            some = f"a multiple of {multiple}" if multiple > 1 else "a whole number"
            raise argparse.ArgumentTypeError(f"got {text[:40]!r}; allowed: {some} from {low} to {high}")
        return number

    return whole


_SEED = _COUNT = _whole(0, 2**63 - 1)
_CANVAS = _whole(32, 1024, multiple=4)


def _share(text: str) -> float:
    """A check of an argument: a share above 0, at most 1."""
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}; allowed: a share above 0, at most 1")
    return share


def _place(text: str) -> object:
    """A store: a local path, or an address in a bucket."""
    from substyle.pipelines.storage import place

    return place(text, "STORE")


def _photographs(text: str) -> object:
    """Photographs: a local path, or the address of tar shards in a bucket."""
    from substyle.pipelines.storage import photographs

    return photographs(text, "IMAGES")


def _study_or_photographs(text: str) -> object:
    """A study file, by its suffix, or photographs."""
    return Path(text) if Path(text).suffix == ".toml" else _photographs(text)


def _folder(text: str) -> Path:
    """A folder for results, which are written locally."""
    if "://" in text:
        raise argparse.ArgumentTypeError("got an address; allowed: a local folder")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    """The parser of the command line; a namespace names the module of its command and the function to call."""
    command_line = _Parser(
        prog="substyle",
        description="What does an image embedding know? Variants of photographs, frozen backbones, small probes.",
        epilog="exit codes: 0 done, 1 failed, 2 bad usage or configuration, 3 images were quarantined under --strict",
    )
    command_line.add_argument("--version", action="version", version=f"substyle {__version__}")
    commands = command_line.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _describe(commands)
    _pipeline(commands)
    _use(commands)
    _measure(commands)
    return command_line


def _command(
    commands: Any,  # noqa: ANN401 - argparse keeps this type to itself
    name: str,
    module: str,
    about: str,
    *,
    plugins: bool = False,
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=about, description=about)
    command.set_defaults(module=module, function=name.replace("-", "_"))
    command.add_argument("--json", action="store_true", help="print exactly one JSON object to stdout")
    command.add_argument("--quiet", action="store_true", help="show no progress")
    if plugins:
        command.add_argument(
            "--plugin",
            action="append",
            default=[],
            type=Path,
            metavar="FILE.py",
            help="a Python file with more transformations or families of backbones",
        )
    return command


def _describe(commands: Any) -> None:  # noqa: ANN401
    _command(commands, "doctor", "describe", "what runs here, and what is missing")
    transforms = _command(commands, "transforms", "describe", "the transformations of a suite", plugins=True)
    transforms.add_argument("--suite", default="substance31", help="suite, or names separated by commas")
    transforms.add_argument("--gallery", type=Path, metavar="OUT.png", help="draw every variant of --image")
    transforms.add_argument("--image", type=Path, help="the photograph for --gallery")
    transforms.add_argument("--seed", type=_SEED, default=0)
    transforms.add_argument("--canvas", type=_CANVAS, default=224, help="canvas side in pixels (224)")
    info = _command(commands, "info", "inspect", "what a store holds, and how much of it is finished")
    info.add_argument("store", type=_place, metavar="STORE")
    schema = _command(commands, "schema", "study", "the JSON Schema of a study file, for editors")
    schema.add_argument("--out", type=Path, metavar="FILE", help="write it there")
    backbones = _command(
        commands, "backbones", "describe", "families and presets of backbones, or those of a store", plugins=True
    )
    backbones.add_argument("--store", type=_place, help="list the backbones of this store")
    backbones.add_argument(
        "--search", metavar="TEXT", help="list presets and timm and open_clip names that contain this"
    )


def _source(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group(
        "photographs",
        "a folder, a list (.csv, .tsv), tar shards, Parquet, a Hugging Face data set, or a pattern of files",
    )
    group.add_argument("--source-kind", metavar="KIND", help="folder, list, tar, parquet or imagenet (what is there)")
    group.add_argument("--image-column", metavar="NAME", help="of Parquet: the column of images (image, img, …)")
    group.add_argument(
        "--label-column", metavar="NAME", help="of a list or Parquet: the column of labels (label, class, …)"
    )
    group.add_argument(
        "--path-column", metavar="NAME", help="of a list: the column of paths (path, file_name, …); of Parquet: of ids"
    )
    group.add_argument(
        "--split-column", metavar="NAME", help="of a list or Parquet: the column of splits (split, subset, partition)"
    )
    group.add_argument(
        "--split-folders",
        metavar="HOW",
        help="of a folder where only some folders are named like a split: folders (they are splits, the rest is left "
        "out) or none (all are classes)",
    )
    group.add_argument("--synsets", type=Path, metavar="FILE", help="of ImageNet: the classes of its flat val/ folder")
    group.add_argument("--class-names", type=Path, metavar="FILE", help="readable names, as LOC_synset_mapping.txt")


def _pipeline(commands: Any) -> None:  # noqa: ANN401
    run = _command(commands, "run", "study", "a study, or photographs: embed, probe, analyze, report")
    _study(run)

    embed = _command(commands, "embed", "embed", "fill a store with embeddings", plugins=True)
    embed.add_argument(
        "images", type=_photographs, nargs="?", metavar="IMAGES", help="photographs; left out: the store's own source"
    )
    embed.add_argument("--store", type=_place, required=True, help="a folder, or s3://, gs://, az://")
    embed.add_argument("--backbone", action="append", required=True, metavar="NAME", help="may be repeated")
    embed.add_argument("--checkpoint", action="append", default=[], metavar="NAME=PATH", help="weights of a backbone")
    embed.add_argument("--suite", help="suite, or names separated by commas (substance31)")
    embed.add_argument("--seed", type=_SEED, help="seed of variants and splits (0)")
    embed.add_argument("--canvas", type=_CANVAS, help="canvas side in pixels (224)")
    embed.add_argument("--orientation", help="EXIF orientations: ignore or apply (ignore)")
    embed.add_argument("--style-precision", help="arithmetic of style networks: bf16, fp16 or fp32 (bf16)")
    embed.add_argument("--limit", type=_COUNT, default=0, metavar="N", help="take only N photographs")
    embed.add_argument("--batch", type=int, help="images in one run of a network (32 on a CPU, 256 on a GPU)")
    embed.add_argument("--threads", type=_whole(0, 1024), default=0, help="CPU threads (all)")
    _device(embed, default="auto")
    embed.add_argument(
        "--precision", default="auto", help="arithmetic of backbones: auto, bf16, fp16, fp32, int8 or fp8"
    )
    embed.add_argument("--dtype", help="float16 or float32 (float16)")
    embed.add_argument("--shard-rows", type=_whole(0, 1 << 20), default=0, help="rows of a shard, a power of two")
    embed.add_argument("--strict", action="store_true", help="exit with 3 when images were quarantined")
    embed.add_argument(
        "--take-over", action="store_true", help="take over the locks of runs on other hosts, which have ended"
    )
    embed.add_argument(
        "--add",
        action="store_true",
        help="add photographs of another source to the store; their keys start with the source's name",
    )
    embed.add_argument("--replace", action="store_true", help="embed photographs again whose bytes have changed")
    embed.add_argument("--part", default="1/1", metavar="i/n", help="do part i of n of the shards, beside the others")
    _executor(embed)
    _source(embed)

    verify = _command(commands, "verify", "inspect", "check a store; embed repairs what is damaged")
    verify.add_argument("store", type=_place, metavar="STORE")
    verify.add_argument("--no-note", action="store_true", help="do not note what is damaged")

    for name, about in (
        ("probe", "train and score probes on a store"),
        ("analyze", "neighbours, geometry and clusters of a store"),
        ("report", "write results.json and the report from what probe and analyze left"),
    ):
        stage = _command(commands, name, "study", about)
        stage.add_argument("store", type=_place, metavar="STORE")
        stage.add_argument(
            "--out",
            type=_folder,
            metavar="DIR",
            help="where results go (runs/<name of the store>; for the store of a run its folder)",
        )
        stage.add_argument("--study", type=Path, metavar="STUDY.toml", help="take settings from this study")
        if name != "report":
            stage.add_argument("--backbone", action="append", default=[], metavar="NAME", help="only this (repeatable)")


def _device(command: argparse.ArgumentParser, default: str | None) -> None:
    own = "the study's" if default is None else default
    too = "; of probes too, unless the study has one for them" if default is None else ""
    command.add_argument("--device", default=default, metavar="DEVICE", help=f"auto, cpu, cuda or cuda:N ({own}){too}")
    command.add_argument(
        "--runtime", default=default, metavar="NAME", help=f"of backbones: auto, openvino, tensorrt or torch ({own})"
    )


def _executor(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("workers", "more than one process, GPU or machine fills the store")
    group.add_argument("--executor", metavar="KIND", help="local: this process; ray: workers of a Ray cluster (local)")
    group.add_argument(
        "--ray-address", metavar="ADDRESS", help="auto or host:port ($RAY_ADDRESS, else a Ray of its own, here alone)"
    )
    group.add_argument("--workers", type=_whole(0, 65536), metavar="N", help="how many (as there is room for)")
    group.add_argument("--retries", type=_whole(0, 100), metavar="N", help="further tries of a shard that failed (2)")


def _study(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "study",
        type=_study_or_photographs,
        metavar="STUDY.toml|IMAGES",
        help="a study file, or photographs, which take --backbone",
    )
    run.add_argument("--images", type=_photographs, metavar="PATH", help="photographs, instead of the study's")
    run.add_argument(
        "--out", type=_folder, metavar="DIR", help="where results go (runs/<name of the study or the photographs>)"
    )
    run.add_argument("--store", type=_place, metavar="STORE", help="where embeddings go (DIR/store.zarr)")
    run.add_argument("--limit", type=_COUNT, metavar="N", help="take only N photographs")
    run.add_argument("--fresh", action="store_true", help="delete the results and the store in DIR first")
    _device(run, default=None)
    run.add_argument("--strict", action="store_true", help="exit with 3 when images were quarantined")
    _executor(run)
    _source(run)
    group = run.add_argument_group("without a study file", "for IMAGES alone; a study file has fields for these")
    group.add_argument("--backbone", action="append", default=[], metavar="NAME", help="required; may be repeated")
    group.add_argument("--checkpoint", action="append", default=[], metavar="NAME=PATH", help="weights of a backbone")
    group.add_argument("--suite", help="suite, or names separated by commas (substance31)")
    group.add_argument("--seed", type=_SEED, help="seed of variants, splits and probes (0)")
    group.add_argument("--canvas", type=_CANVAS, help="canvas side in pixels (224)")


def _measure(commands: Any) -> None:  # noqa: ANN401
    bench = _command(commands, "bench", "plan", "measure ours, the peers and the ceiling side by side")
    bench.add_argument("names", nargs="*", metavar="NAME", help="which benchmarks (all)")
    bench.add_argument("--quick", action="store_true", help="short forms; their numbers are rough")
    bench.add_argument("--out", type=Path, metavar="DIR", help="where the JSON goes (benchmarks/results)")
    plan = _command(commands, "plan", "plan", "what a study takes on GPUs: hours, memory, disk, the limiting stage")
    plan.add_argument("study", type=Path, metavar="STUDY.toml")
    plan.add_argument("--gpu", help="h100, h200, a100 or l4 (the one that is there, else h100, and it says so)")
    plan.add_argument("--count", type=_whole(1, 1 << 20), default=1, help="how many (1)")
    plan.add_argument("--photographs", type=_whole(1, 2**53), metavar="N", help="how many (those of the study)")
    plan.add_argument("--images", type=_photographs, metavar="PATH", help="photographs to count")
    plan.add_argument("--measured", type=Path, metavar="DIR", help="results of gpu-check (those of the checkout)")
    plan.add_argument("--compute", type=_share, help="share of the peak operations a second (as measured, else 0.6)")
    plan.add_argument("--bandwidth", type=_share, help="share of the peak bandwidth (as measured, else 0.8)")
    profile = _command(commands, "profile", "plan", "run a study and show where its time went")
    _study(profile)


def _use(commands: Any) -> None:  # noqa: ANN401
    predict = _command(commands, "predict", "study", "apply a saved probe to photographs", plugins=True)
    predict.add_argument("probe", type=Path, metavar="PROBE", help="a .safetensors file of probes/")
    predict.add_argument("images", type=_photographs, metavar="IMAGES", help="photographs, or one image")
    predict.add_argument("--store", type=_place, help="the store it was trained on (needed for control:random)")
    predict.add_argument("--checkpoint", type=Path, help="weights of the backbone")
    predict.add_argument("--top", type=int, default=3, help="labels shown for each image (3)")
    _source(predict)

    compare = _command(commands, "compare", "study", "set the results of runs side by side")
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders with results.json, or such files")
    compare.add_argument("--out", type=Path, default=Path("comparison"), metavar="DIR")

    bring = _command(commands, "import", "study", "take embeddings that were made elsewhere into a store")
    bring.set_defaults(function="import_embeddings")
    bring.add_argument(
        "embeddings", type=Path, help="Parquet (key, transformation, embedding), or a .npy array (rows, D)"
    )
    bring.add_argument("--rows", type=Path, help="for .npy: CSV with columns key, transformation, and label, split")
    bring.add_argument("--store", type=_place, required=True, help="a new store")
    bring.add_argument("--backbone", required=True, metavar="NAME", help="what to call it, such as import:my_model")
    bring.add_argument("--seed", type=_SEED, default=0, help="seed of splits where the rows have none (0)")
