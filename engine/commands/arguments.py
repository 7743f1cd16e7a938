"""Arguments of all commands and the modules that implement them. Those of a command are made when it is used."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from substyle import __version__
from substyle.pipelines.entry_points import COMMANDS, Registry


class BadUsage(SystemExit):
    """The arguments are invalid; argparse has printed the message."""

    def __init__(self, message: str, field: str | None) -> None:
        super().__init__(2)
        self.message = message
        self.field = field


class _Parser(argparse.ArgumentParser):
    """A parser whose errors can be reported as JSON."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message like argparse, then raise BadUsage."""
        cause = sys.exc_info()[1]  # argparse calls this inside its exception handler
        field = cause.argument_name if isinstance(cause, argparse.ArgumentError) else None
        if missing := re.search(r"arguments are required: ([^\s,]+)$", message):
            field = missing[1]
        if unknown := re.match(r"unrecognized arguments: --([a-z-]+)", message):
            message += "".join(f"; use --set {name}=…" for name in _fields(unknown[1].replace("-", "_")))
        self.print_usage(sys.stderr)
        print(f"{self.prog}: error: {message}", file=sys.stderr)
        raise BadUsage(message, field)


def _fields(name: str) -> list[str]:
    """Fields of study files with a name, by dotted name."""
    from substyle.engine.base_config import SHARED
    from substyle.engine.config import Study
    from substyle.engine.probes.config import ExpertConfig

    known: Any = Study
    tables = {f"{table}.": field.annotation for table, field in known.__pydantic_fields__.items()}
    found = [name] if name in known.__pydantic_fields__ else []
    return found + [
        f"{table}{name}"
        for table, model in {**tables, "probes.expert.": ExpertConfig}.items()
        if name in getattr(model, "__pydantic_fields__", ()) and name not in SHARED
    ]


class _Completion(argparse.Action):
    """Print the script that completes commands, options, paths and names in a shell."""

    def __call__(self, of: argparse.ArgumentParser, namespace: object, values: object, option: object = "") -> None:
        """Print it and exit."""
        from substyle.engine.commands.completion import script

        print(script(parser(), str(values), (local, place, photographs, _study_or_photographs)))
        of.exit()


def _whole(low: int, high: int, *, multiple: int = 1) -> Callable[[str], int]:
    """Argument type: an integer from low to high, divisible by ``multiple``."""

    def whole(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high or number % multiple:
            some = f"a multiple of {multiple}" if multiple > 1 else "an integer"
            raise argparse.ArgumentTypeError(f"got {text[:40]!r}; allowed: {some} from {low} to {high}")
        return number

    return whole


def _positive(text: str) -> float:
    """Argument type: a positive number."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e12:
        raise argparse.ArgumentTypeError(f"got {text[:40]!r}; allowed: a number above 0 and below 1e12")
    return number


_SEED = _whole(0, 2**63 - 1)
_MANY = _whole(1, 2**53)
_CANVAS = _whole(32, 1024, multiple=4)


def place(text: str) -> object:
    """Argument type of a store: a local path, or an address in a bucket."""
    from substyle.pipelines.storage import place

    return place(text, "STORE")


def photographs(text: str) -> object:
    """Argument type of photographs: a local path, or the address of tar shards in a bucket."""
    from substyle.pipelines.storage import photographs

    return photographs(text, "IMAGES")


def _study_or_photographs(text: str) -> object:
    """Argument type: a study file (``.toml``), the name of a study of the package, or photographs."""
    from substyle.engine.study.file import find_study

    return find_study(text) or photographs(text)


def local(text: str) -> Path:
    """Argument type of a local path: an address, such as ``s3:/bucket``, would become a folder."""
    if re.match(r"[a-z][a-z0-9+.-]+:/|(s3|gs|az|file):", text, re.IGNORECASE):
        raise argparse.ArgumentTypeError("got an address; allowed: a local path")
    return Path(text)


_Arguments = Callable[[argparse.ArgumentParser], None]
_COMMANDS: Registry[tuple[str, str, _Arguments]] = Registry("command", COMMANDS)  # module, description, arguments
# commands of the version before, and what does the same now
_FORMER = {
    "adapt": "substyle stage adapt",
    "analyze": "substyle stage analysis,similarity",
    "attack": "substyle stage attack",
    "bench": "python -m benchmarks",
    "card": "substyle share card",
    "demo": "substyle run demo --packaged",
    "doctor": "substyle info",
    "profile": "substyle run --profile",
    "probe": "substyle stage probes",
    "push": "substyle share push",
    "results": "substyle share rows",
    "schema": "substyle info --schema",
    "site": "substyle share site",
}
_GROUPS = {"share": "pass results on: model card, Hugging Face Hub, rows of results, static site"}


def command(name: str, module: str, about: str) -> Callable[[_Arguments], _Arguments]:
    """Define a command, as a decorator of the function that adds its arguments.

    Args:
        name: the command, whose last word is the function that implements it; the first may be one of `_GROUPS`.
        module: full name of that function's module, or the last part of that of a module of this package.
        about: help text.
    """

    def define(add_arguments: _Arguments) -> _Arguments:
        whole = module if "." in module else f"substyle.engine.commands.{module}"
        _COMMANDS.add(name, (whole, about, add_arguments))
        return add_arguments

    return define


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """Create the parser. The namespace holds the command's ``module`` and ``function``.

    Args:
        only: the command whose arguments are added. None: those of all commands.
    """
    _COMMANDS.load()
    command_line = _Parser(
        prog="substyle",
        description="What does an image embedding know? Probe frozen backbones on transformed photographs.",
        epilog="exit codes: 0 success, 1 failure, 2 invalid arguments or configuration, 3 images were quarantined "
        "(--strict), 130 interrupted, 143 terminated",
    )
    command_line.add_argument("--version", action="version", version=f"substyle {__version__}")
    command_line.add_argument(
        "--print-completion", action=_Completion, choices=("bash", "zsh", "tcsh"), help="print a completion script"
    )
    commands = command_line.add_subparsers(dest="command", required=True, metavar="COMMAND")
    groups: dict[str, Any] = {"": commands}
    for name, (module, about, add_arguments) in _COMMANDS.items():
        group, _, own = name.rpartition(" ")
        if group not in groups:
            within = commands.add_parser(group, help=_GROUPS[group], description=_GROUPS[group])
            groups[group] = within.add_subparsers(dest=group, required=True, metavar="WHAT")
        command = groups[group].add_parser(own, help=about, description=about)
        if only in (None, group or name):
            command.set_defaults(module=module, function=own.replace("-", "_"))
            command.add_argument("--json", action="store_true", help="print exactly one JSON object to stdout")
            command.add_argument("--quiet", action="store_true", help="hide progress")
            add_arguments(command)
    return command_line


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. Only its command's arguments are made, since they may need the models of a study.

    Raises:
        BadUsage: invalid arguments.
        SystemExit: ``--help`` or ``--version``.
    """
    name = next((word for word in words if not word.startswith("-")), "")
    made = parser(name)
    if name in _FORMER:
        made.error(f"argument COMMAND: {name} is {_FORMER[name]} now")
    if words.count("--") > 1:  # argparse takes the second for an argument without a value
        made.error("argument --: expected at most once")
    return made.parse_args(words)


def plugins(command: argparse.ArgumentParser) -> None:
    _plugin_files(command)
    _code(command)


def _plugin_files(command: argparse.ArgumentParser) -> None:
    text = "Python file or package that registers transformations, backbone families, sources or stages (repeatable)"
    command.add_argument("--plugin", action="append", default=[], type=local, metavar="FILE.py", help=text)


def of_study(command: argparse.ArgumentParser) -> None:
    """Options of all commands that read a study."""
    _set(command, "probes.mlp_steps=300")
    _code(command)


def _set(command: argparse.ArgumentParser, example: str) -> None:
    text = f"value (TOML) of a field of study files, such as {example}; all: substyle info --schema study (repeatable)"
    _many(command, "--set", text, "FIELD=VALUE")


def _code(command: argparse.ArgumentParser) -> None:
    text = "run code that files name: plug-ins of the study file, python: backbones and transformations"
    command.add_argument("--allow-plugins", action="store_true", help=text)


def _many(command: Any, option: str, text: str, metavar: str = "NAME") -> None:  # noqa: ANN401
    command.add_argument(option, action="append", default=[], metavar=metavar, help=text)


def _checkpoint(command: Any) -> None:  # noqa: ANN401
    _many(command, "--checkpoint", "weights of a backbone", "NAME=PATH")


def _suite(command: Any, default: str | None = "substance31") -> None:  # noqa: ANN401
    text = "suites, suite files or names, joined by commas (substance31)"
    command.add_argument("--suite", default=default, help=text)


def _metrics(command: argparse.ArgumentParser) -> None:
    text = "file of Prometheus metrics (.prom) for node_exporter's textfile collector, written during the run"
    command.add_argument("--metrics", type=local, metavar="FILE", help=text)


@command("run", "study", "run all stages: embed, probe, analyze, report")
def _run(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "study",
        type=_study_or_photographs,
        metavar="STUDY|IMAGES",
        help="a study file, a study of the package such as demo, or photographs (with --backbone)",
    )
    run.add_argument("--images", type=photographs, metavar="PATH", help="photographs, instead of the study's")
    text = "run the study on photographs that Python packages ship, which runs/photographs is filled with"
    run.add_argument("--packaged", action="store_true", help=text)
    of_study(run)
    run.add_argument(
        "--out", type=local, metavar="DIR", help="output folder (runs/<name of the study or the photographs>)"
    )
    run.add_argument("--store", type=place, metavar="STORE", help="store of the embeddings (DIR/store.zarr)")
    text = "few photographs and the settings of the demo where they cost less; into runs/<name>-quick"
    run.add_argument("--quick", action="store_true", help=text)
    run.add_argument("--fresh", action="store_true", help="delete results and store in DIR first")
    _metrics(run)
    run.add_argument("--profile", action="store_true", help="print the time spent in each part, and write a trace")
    text = "auto, cpu, cuda or cuda:N (the study's)"
    run.add_argument("--device", metavar="DEVICE", help=text)
    run.add_argument("--strict", action="store_true", help="exit with 3 if images were quarantined")
    group = run.add_argument_group("without a study file", "for IMAGES only; study files have fields for these")
    _many(group, "--backbone", "required, repeatable")
    _checkpoint(group)
    _suite(group, None)


@command("transforms", "describe", "list the transformations of a suite")
def _transforms(transforms: argparse.ArgumentParser) -> None:
    plugins(transforms)
    _suite(transforms)
    transforms.add_argument("--seed", type=_SEED, default=0, help="seed of the variants of --gallery (0)")
    transforms.add_argument("--canvas", type=_CANVAS, default=224, help="their side in pixels (224)")
    text = "list transformations of this package and of installed libraries with TEXT in their names, and parameters"
    transforms.add_argument("--search", metavar="TEXT", help=text)
    transforms.add_argument("--gallery", type=local, metavar="OUT.png", help="draw all variants of --image")
    transforms.add_argument("--image", type=local, help="photograph for --gallery")


@command("info", "describe", "report devices, libraries and the cache, or contents and progress of a store")
def _info(info: argparse.ArgumentParser) -> None:
    plugins(info)
    info.add_argument("store", type=place, nargs="?", metavar="STORE", help="default: report on this machine")
    info.add_argument(
        "--clean-cache", action="store_true", help="remove compiled backbones and other files that are made again"
    )
    text = "print the JSON Schema of study files, or of results.json"
    info.add_argument("--schema", choices=("study", "results"), help=text)


@command("backbones", "describe", "list available or stored backbones")
def _backbones(backbones: argparse.ArgumentParser) -> None:
    plugins(backbones)
    backbones.add_argument("--store", type=place, help="list the backbones of this store")
    backbones.add_argument("--search", metavar="TEXT", help="list presets, timm and open_clip models containing TEXT")


@command("embed", "embed", "embed photographs into a store")
def _embed(embed: argparse.ArgumentParser) -> None:
    plugins(embed)
    embed.add_argument(
        "images", type=photographs, nargs="?", metavar="IMAGES", help="photographs; default: those of the store"
    )
    embed.add_argument("--store", type=place, required=True, help="local folder, or s3://, gs://, az:// address")
    embed.add_argument("--backbone", action="append", required=True, metavar="NAME", help="backbone (repeatable)")
    _checkpoint(embed)
    _suite(embed, None)
    _set(embed, "limit=1000 or embed.precision=fp32")
    embed.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (auto)")
    embed.add_argument("--strict", action="store_true", help="exit with 3 if images were quarantined")
    embed.add_argument("--take-over", action="store_true", help="take over locks of ended runs on other hosts")
    embed.add_argument(
        "--add",
        action="store_true",
        help="add photographs of another source to the store; their keys are prefixed with the source's name",
    )
    embed.add_argument("--replace", action="store_true", help="embed edited photographs again, quarantine deleted ones")
    text = "remove photographs that are gone: embeddings, thumbnails and names"
    embed.add_argument("--remove-missing", action="store_true", help=text)
    embed.add_argument("--part", default="1/1", metavar="i/n", help="process part i of n of the shards")
    _metrics(embed)


@command("verify", "inspect", "check a store for damage; embed repairs it")
def _verify(verify: argparse.ArgumentParser) -> None:
    verify.add_argument("store", type=place, metavar="STORE")
    verify.add_argument("--no-note", action="store_true", help="do not record damage for embed")


def _stage(stage: argparse.ArgumentParser, name: str) -> None:
    if name == "stage":
        _plugin_files(stage)
        stage.add_argument("stage", metavar="NAMES", help="stages joined by commas, such as probes,analysis,similarity")
    stage.add_argument("store", type=place, metavar="STORE")
    text = "output folder (the folder of the run that created the store, else runs/<name of the store>)"
    stage.add_argument("--out", type=local, metavar="DIR", help=text)
    text = "study file, or its name, to take settings from"
    stage.add_argument("--study", type=local, metavar="STUDY", help=text)
    text = "photographs of the study, if they are not those that its file names"
    stage.add_argument("--images", type=photographs, metavar="IMAGES", help=text)
    of_study(stage)
    if name != "report":
        _many(stage, "--backbone", "backbone (all; repeatable)")
    if name == "stage":
        _checkpoint(stage)


for name, about in (
    ("stage", "compute stages of a study on a store: probes, analysis and others, also of plug-ins"),
    ("report", "write results.json and the report from the results of the stages"),
):
    command(name, "study", about)(partial(_stage, name=name))


@command("predict", "predict", "apply a trained probe to photographs")
def _predict(predict: argparse.ArgumentParser) -> None:
    plugins(predict)
    predict.add_argument(
        "probe", type=local, metavar="PROBE|OUT", help="a .safetensors file, or the output folder of a run"
    )
    predict.add_argument("images", type=photographs, metavar="IMAGES", help="photographs, or one image")
    predict.add_argument("--backbone", metavar="NAME", help="backbone of OUT; default: the only one but controls")
    predict.add_argument("--task", help="task of OUT: transformation (default), kind, class or multitask")
    predict.add_argument("--checkpoint", type=local, help="weights of the backbone")
    predict.add_argument("--download", action="store_true", help="fetch weights that the probe names from a hub")
    predict.add_argument("--out", type=local, metavar="FILE", help="write all predictions to a .csv or .parquet file")
    predict.add_argument("--top", type=int, default=3, help="labels per image (3)")
    predict.add_argument("--strict", action="store_true", help="exit with 3 if images were quarantined")
    _set(predict, "source.kind=parquet")


@command("compare", "study", "compare the results of runs")
def _compare(compare: argparse.ArgumentParser) -> None:
    plugins(compare)
    compare.add_argument("runs", type=local, nargs="+", metavar="RUN", help="folders with results.json, or such files")
    compare.add_argument(
        "--out", type=local, default=Path("comparison"), metavar="DIR", help="output folder (comparison)"
    )


@command("diff", "diff", "tell what one network reads better or worse than another")
def _diff(diff: argparse.ArgumentParser) -> None:
    text = "a backbone, a file of weights (with --model), a network of RUN, or the output folder of a run"
    diff.add_argument("before", metavar="A", help=text)
    diff.add_argument("after", metavar="B", help="likewise; differences are B - A")
    text = "photographs, or the output folder of a run with both networks; default: A and B are runs"
    diff.add_argument("images", type=photographs, nargs="?", metavar="PHOTOS|RUN", help=text)
    diff.add_argument("--model", metavar="NAME", help="network of the files of weights, such as timm:resnet18")
    text = 'exit with 1 if a change is clearly beyond a limit in points, such as "class under jpeg < -2" (repeatable)'
    _many(diff, "--fail-if", text, "CONDITION")
    diff.add_argument("--out", type=local, metavar="DIR", help="output folder (runs/<name of the photographs>-diff)")
    plugins(diff)
    _suite(diff, None)
    _set(diff, "limit=500")


@command("share card", "exchange", "write the Hugging Face model card of a run")
def _card(card: argparse.ArgumentParser) -> None:
    card.add_argument("run", type=local, metavar="RUN", help="output folder of a run")
    card.add_argument("--out", type=local, metavar="FILE", help="file to write (RUN/README.md)")


@command("import", "exchange", "import embeddings into a new store, or as a further backbone")
def _import(bring: argparse.ArgumentParser) -> None:
    plugins(bring)
    bring.set_defaults(function="import_embeddings")
    bring.add_argument(
        "embeddings",
        type=place,
        help="Parquet file or folder (key, transformation, embedding), a .npy array (rows, D), or a store of schema 3",
    )
    bring.add_argument(
        "--rows", type=local, help="for .npy: CSV with columns key, transformation, optional label, split"
    )
    bring.add_argument("--store", type=place, required=True, help="new store, or one with the same photographs")
    bring.add_argument("--backbone", metavar="NAME", help="name for it, such as import:my_model; not for a store")
    bring.add_argument("--seed", type=_SEED, default=0, help="seed of splits if the rows have none (0); new stores")
    bring.add_argument(
        "--dtype", choices=("float16", "float32"), help="of a new store (float16 if it holds the numbers)"
    )


@command("export", "exchange", "write embeddings to files of other libraries; resumable")
def _export(export: argparse.ArgumentParser) -> None:
    export.add_argument("store", type=place, metavar="STORE")
    export.add_argument("--to", required=True, metavar="FORMAT", help="parquet, numpy, faiss, huggingface or lance")
    export.add_argument("--out", type=local, required=True, metavar="DIR", help="new folder, or that of an export")
    _many(export, "--backbone", "backbone (all; repeatable)")
    _many(export, "--transformation", "transformation (all; repeatable)")


@command("explore", "exchange", "open a map of embeddings with thumbnails in a browser")
def _explore(explore: argparse.ArgumentParser) -> None:
    plugins(explore)
    explore.add_argument("store", type=place, metavar="STORE")
    explore.add_argument("--backbone", required=True, metavar="NAME", help="a backbone of the store")
    explore.add_argument("--export", type=local, metavar="DIR", help="write a static page instead; a new folder")
    explore.add_argument("--results", type=local, metavar="DIR", help="output folder of its probes (that of the run)")
    explore.add_argument("--projection", default="umap", metavar="NAME", help="umap, pacmap or tsne (umap)")
    explore.add_argument(
        "--photographs", type=_whole(1, 1 << 20), default=200, metavar="N", help="photographs, drawn at random (200)"
    )
    explore.add_argument("--seed", type=_SEED, default=0, help="seed of photographs and projection (0)")


@command("variants", "exchange", "write the variants of photographs to image files")
def _variants_to_files(variants: argparse.ArgumentParser) -> None:
    plugins(variants)
    variants.add_argument("images", type=photographs, metavar="IMAGES")
    variants.add_argument("--out", type=local, required=True, metavar="DIR", help="new folder")
    variants.add_argument("--to", default="folder", metavar="LAYOUT", help="folder or webdataset (folder)")
    variants.add_argument("--format", default="png", help="png, which is exact, or jpeg (png)")
    variants.add_argument("--quality", type=int, default=95, help="of JPEG files, 1 to 100 (95)")
    _suite(variants)
    _set(variants, "canvas=448 or limit=100")
    variants.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (auto)")


@command("plan", "plan", "estimate the hours and disk of a study, by counting or from a sample")
def _plan(plan: argparse.ArgumentParser) -> None:
    plan.add_argument("study", type=local, metavar="STUDY", help="a study file, or a study of the package such as demo")
    of_study(plan)
    plan.add_argument("--gpu", help="h100, h200, a100 or l4 (the installed GPU, else h100)")
    plan.add_argument("--count", type=_whole(1, 1 << 20), default=1, help="number of GPUs (1)")
    plan.add_argument("--gpus-per-machine", type=_whole(1, 1 << 10), default=8, metavar="N", help="of them (8)")
    text = "GB/s that a machine reads and writes, on its disk or over its network (1)"
    plan.add_argument("--machine-rate", type=_positive, default=1.0, metavar="RATE", help=text)
    text = "GB/s of storage that all machines share (as much as they use)"
    plan.add_argument("--storage-rate", type=_positive, metavar="RATE", help=text)
    plan.add_argument("--gpu-price", type=_positive, metavar="PRICE", help="price of a GPU for an hour")
    plan.add_argument("--photographs", type=_MANY, metavar="N", help="number of photographs, instead of the study's")
    plan.add_argument("--images", type=photographs, metavar="PATH", help="photographs to count")
    plan.add_argument(
        "--sample", type=_MANY, metavar="N", help="run the study on N photographs here, and scale its times"
    )
