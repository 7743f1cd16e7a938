"""The table `[labels]` of a study file."""

from __future__ import annotations

import dataclasses
from dataclasses import field
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, StrictInt

from substyle.engine.base_config import BootstrapConfig
from substyle.engine.probes.config import Head
from substyle.errors import ConfigError
from substyle.pipelines.sources.metadata import Origin
from substyle.pipelines.validation import Distinct, validated


def _origins(of: dict[str, str]) -> dict[str, str]:
    for label, text in of.items():
        Origin.of(text, label, f"labels.of.{label}")
    return of


@validated("labels")
class LabelsConfig(BootstrapConfig):
    """Labels of photographs besides their class, predicted from embeddings of original photographs."""

    of: Annotated[dict[str, str], Field(max_length=100), AfterValidator(_origins)]
    """Labels by name: ``column:NAME`` of the source of photographs, ``file:LIST.csv`` or ``file:LIST.csv:COLUMN`` (a
    list with the paths of photographs; by default the column of the label's name), ``exif:FIELD``, or
    ``exif:FIELD.year`` (``.month``, ``.hour``) of dates."""
    group: str = ""
    """The label whose photographs are not independent, such as the patient: intervals are over its values, and test
    photographs of a value that is also in training are left out."""
    numbers: tuple[str, ...] = ()
    """Labels that are regressed; in any case those with more than 20 values, all of them numbers."""
    bins: dict[str, Annotated[StrictInt, Field(ge=2, le=100)]] = field(default_factory=dict)
    """Labels whose numbers are classified instead: the number of bins, of equally many training photographs but for
    ties."""
    heads: Distinct[Head] = ("linear",)
    """Kinds of probes: linear, mlp."""
    shots: Annotated[StrictInt, Field(ge=0, le=10**6)] = 16
    """Photographs of each value from which few-shot accuracy is measured; 0 measures none."""
    min_images: Annotated[StrictInt, Field(ge=2, le=10**6)] = 5
    """Values on fewer training photographs are left out."""
    max_values: Annotated[StrictInt, Field(ge=0, le=1000)] = 5
    """Number of values, the most frequent ones, that are left out of the training of class probes in turn."""

    def __post_init__(self) -> None:
        given = {"group": (self.group,) * bool(self.group), "numbers": self.numbers, "bins": tuple(self.bins)}
        for own, names in given.items():
            if unknown := sorted(set(names) - set(self.of)):
                raise ConfigError(f"labels.{own}", unknown[0], f"labels: {', '.join(self.of) or 'there are none'}")
        if both := sorted(set(self.numbers) & set(self.bins)):
            raise ConfigError("labels.bins", both[0], "a label that is not in numbers")

    @property
    def origins(self) -> dict[str, Origin]:
        """Where labels come from, by name."""
        return {label: Origin.of(text, label) for label, text in self.of.items()}

    def below(self, folder: Path) -> LabelsConfig:
        """The settings with lists whose paths are relative to a folder."""
        return dataclasses.replace(self, of={label: origin.below(folder) for label, origin in self.origins.items()})
