"""`albumentations:<Name>`, and `albumentations:pipeline` for a pipeline that ``albumentations.save`` has written.

albumentations (MIT, no longer developed) and its successor albumentationsx (AGPL) are the same module.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle import files
from substyle.errors import ConfigError, SubstyleError
from substyle.pipelines import limits
from substyle.pipelines.libraries.library import Applied, Library, subclasses

_PIPELINE, _DEPTH = "pipeline", 32
_COMPOSITIONS = ("Compose", "OneOf", "OneOrOther", "RandomOrder", "SelectiveChannelTransform", "Sequential", "SomeOf")


class Albumentations(Library):
    """Each transformation has generators of its own, which are seeded."""

    prefix, module, extra = "albumentations", "albumentations", "albumentations"
    distributions = (
        *("albumentations|albumentationsx", "albucore", "numpy", "scipy"),
        "opencv-python-headless|opencv-python|opencv-contrib-python-headless|opencv-contrib-python",
    )

    def imported(self, place: str) -> Any:  # noqa: ANN401
        """Import it without its look for a newer version on the network."""
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        return super().imported(place)

    def names(self) -> Mapping[str, Callable[..., Any]]:
        """Its transforms of pictures, and the pipeline."""
        library = self.imported(self.prefix)
        return {
            **subclasses(self.module, (library.ImageOnlyTransform, library.DualTransform), library.Transform3D),
            _PIPELINE: lambda transform: library.from_dict({"transform": transform}),
        }

    def arguments(self, place: str, name: str, given: Mapping[str, Any], folder: Path, file: object) -> dict[str, Any]:
        """Also of a pipeline, which is read from its file."""
        if name != _PIPELINE:
            return super().arguments(place, name, given, folder, file)
        self.imported(place)
        if given:
            raise ConfigError(f"{place}.parameters", ", ".join(given), "none, for a pipeline: its file has them")
        if not isinstance(file, str):
            raise ConfigError(f"{place}.file", file, "a JSON file that albumentations.save has written")
        try:
            with files.open_inside(folder, file) as opened:
                limits.require(file, os.fstat(opened.fileno()).st_size, limits.MAX_TEXT_FILE)
                transform = json.loads(opened.read(limits.MAX_TEXT_FILE))["transform"]
                classes = list(_classes(transform))
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SubstyleError) as error:
            reason = f"{type(error).__name__}: {error}"
            allowed = f"a file below the folder of the suite file that albumentations.save has written ({reason})"
            raise ConfigError(f"{place}.file", file, allowed) from error
        allowed_names = {*self.names(), *_COMPOSITIONS} - {_PIPELINE}
        for each in classes:
            if each not in allowed_names:
                raise ConfigError(f"{place}.file", f"{file}: {each}", "transforms of pictures that open no files")
        return {"transform": transform}

    def make(self, name: str, arguments: Mapping[str, Any]) -> Applied:
        """Make a transform that draws from generators of its own, in a Compose, which seeds them."""
        library = self.imported(self.prefix)
        if name == _PIPELINE:
            with warnings.catch_warnings():
                # of another version: it would leave out arguments that it does not know, and take its defaults
                warnings.simplefilter("error", UserWarning)
                made = library.from_dict({"transform": arguments["transform"]})
            made = made if isinstance(made, library.Compose) else library.Compose([made])
            return lambda image_SSC, seed: self.apply(made, image_SSC, seed)
        made = library.Compose([self.names()[name](**arguments)])
        return lambda image_SSC, seed: self.apply(made, image_SSC, seed)

    def apply(self, made: Any, image_SSC: NDArray[np.uint8], seed: int) -> Any:  # noqa: ANN401
        """Seed a pipeline and apply it."""
        made.set_random_seed(seed)
        return made(image=image_SSC)["image"]


def _classes(node: object, depth: int = 0) -> Iterator[str]:
    """Names of all classes in a pipeline. Raises ValueError for one that is nested too deeply."""
    if depth > _DEPTH:
        raise ValueError(f"nested more than {_DEPTH} times")
    if isinstance(node, dict):
        if "__class_fullname__" in node:
            yield str(node["__class_fullname__"]).rpartition(".")[2]
        for each in node.values():
            yield from _classes(each, depth + 1)
    elif isinstance(node, list):
        for each in node:
            yield from _classes(each, depth + 1)


LIBRARY = Albumentations()
