"""The study that `run` and `profile` are asked for: a file's, or one made of photographs and options."""

from __future__ import annotations

import argparse
import dataclasses
import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from substyle.engine.commands.filling import backbone_choices
from substyle.engine.study import Study, load_study, study_of
from substyle.kernels.errors import ConfigError
from substyle.pipelines.places import is_remote

# options that only photographs take, and the fields of a study file that say the same
_FIELDS = {
    "backbone": "backbones",
    "checkpoint": "checkpoint of a backbone",
    "suite": "suite",
    "seed": "seed",
    "canvas": "canvas",
}


def study_asked(options: argparse.Namespace) -> Study:
    """The study to run.

    Raises:
        ConfigError: an option that does not go with a study file, or with photographs; no backbone for photographs; a
            study file that is not allowed.
    """
    return _of_file(options) if is_study(options) else _of_photographs(options)


def is_study(options: argparse.Namespace) -> bool:
    """Whether a study file is named, and not photographs."""
    return isinstance(options.study, Path) and options.study.suffix == ".toml"


def _of_file(options: argparse.Namespace) -> Study:
    for option, field in _FIELDS.items():
        given = getattr(options, option)
        if given is not None and given != []:
            raise ConfigError(f"--{option}", given, f"only with photographs; set {field} in {options.study} instead")
    return load_study(options.study, device=options.device, runtime=options.runtime)


def _of_photographs(options: argparse.Namespace) -> Study:
    if options.images is not None:
        raise ConfigError("--images", str(options.images), f"only with a study file; {options.study} is photographs")
    if not options.backbone:
        raise ConfigError(
            "--backbone",
            "nothing",
            "at least one name with photographs, such as package:efficientnet_lite0; substyle backbones lists them",
        )
    chosen = backbone_choices(options.backbone, options.checkpoint)
    data: dict[str, Any] = {
        "name": name_of(options.study),
        "backbones": [{"name": c.name} | ({"checkpoint": c.checkpoint} if c.checkpoint else {}) for c in chosen],
    }
    data |= {name: getattr(options, name) for name in ("suite", "seed", "canvas") if getattr(options, name) is not None}
    study = study_of(data, device=options.device, runtime=options.runtime)
    return dataclasses.replace(study, images=options.study)


def name_of(images: Path | str) -> str:
    """What a study of photographs is called: the folder's name, or a file's without its suffix."""
    if is_remote(images):
        name = PurePosixPath(str(images)).stem
    else:
        path = Path(os.path.abspath(images))
        name = path.name if path.is_dir() else path.stem
    name = name.encode("utf-8", "backslashreplace").decode()  # names of files may be no text
    # of a pattern, such as train-{0000..0146}.tar, only what may stand in any name
    return re.sub(r"-*[\\{}*?\[\]]+-*", "-", name).strip("-. ") or "photographs"
