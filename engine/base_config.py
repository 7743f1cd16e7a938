"""Settings of a whole study, which its stages share."""

from __future__ import annotations

import dataclasses
from typing import Annotated, TypeVar

from pydantic import Field, StrictInt

from substyle.engine.devices import AUTO, check_device
from substyle.engine.store.layout import ResampleBy
from substyle.errors import ConfigError
from substyle.pipelines.validation import validated

C = TypeVar("C")  # settings of a stage, a dataclass


@validated(kw_only=True)
class SamplingConfig:
    """Random numbers, and what is drawn together."""

    seed: Annotated[StrictInt, Field(ge=0, lt=2**63)] = 0
    """Seed of variants, splits, samples, initial weights and intervals."""
    resample_by: ResampleBy = "photograph"
    """Unit of the bootstrap: photographs, or whole folders if photographs of one folder are not independent (crops of
    one picture, frames of one video)."""


@validated(kw_only=True)
class BootstrapConfig(SamplingConfig):
    """Random numbers and bootstrap intervals."""

    bootstrap: Annotated[StrictInt, Field(ge=100, le=10**6)] = 2000
    """Number of bootstrap resamples of the test photographs."""


@validated(kw_only=True)
class ResourceConfig:
    """Where a study is computed."""

    device: str = AUTO
    """cpu, cuda, cuda:N, or ``auto``: the first GPU visible to torch, else the CPU. Nearest neighbours and clusters are
    computed on the CPU if FAISS does not support the GPU."""
    threads: Annotated[StrictInt, Field(ge=0, le=1024)] = 0
    """CPU threads at most; 0 uses all. Probes of several backbones are computed at the same time, each in a process
    with a part of the threads; 1: one after another. Workers of a Ray cluster have as many each."""

    def __post_init__(self) -> None:
        check_device(self.device)


SHARED = tuple(each.name for kind in (BootstrapConfig, ResourceConfig) for each in dataclasses.fields(kind))


_OF_STUDY = "_of_study"  # marks settings whose shared values are a study's, and not given


def with_shared(config: C, study: object, table: str) -> C:
    """Settings of a stage, with the study's values of the fields that both have.

    Raises:
        ConfigError: the settings were given another value of their own.
    """
    shared = {}
    for field in (each for each in dataclasses.fields(config) if each.name in SHARED):  # type: ignore[arg-type]
        value, given = getattr(study, field.name), getattr(config, field.name)
        if given not in (field.default, value) and not hasattr(config, _OF_STUDY):
            raise ConfigError(f"{table}.{field.name}", given, f"none; {field.name} is set for the whole study")
        shared[field.name] = value
    made = changed(config, **shared)
    object.__setattr__(made, _OF_STUDY, True)
    return made


def changed(config: C, **values: object) -> C:
    """Copy of settings with other values. Defaults are left out, of which an empty one may not be given."""
    fields = dataclasses.fields(config)  # type: ignore[arg-type]
    given = {each.name: getattr(config, each.name) for each in fields if getattr(config, each.name) != each.default}
    return type(config)(**given | values)
