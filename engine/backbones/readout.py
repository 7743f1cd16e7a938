"""Options at the end of a backbone's name: where in a network an embedding is read, and from pixels of which levels.

Such as `@layer=6,pool=avg` or `@mean=0.5,std=0.5`. They are part of the name: with other options it is another backbone
of a store.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from substyle.engine.backbones.spec import RGB
from substyle.kernels.errors import ConfigError

POOLS = ("cls", "avg", "max", "map", "none")
HEADS = ("projection", "none")
ALLOWED = (
    f"@layer=<number of a block, negative from the end>, pool={'|'.join(POOLS)}, head={'|'.join(HEADS)}, "
    "mean=<number>, std=<number> (of pixels in [0, 1]; or three, <red>:<green>:<blue>)"
)
# a name's own part may hold an @, as a path does: options are plain words and numbers to the very end
_OPTION = "[a-z]+=(?:[a-z0-9-]*|[0-9.:]+)"
_OPTIONS = re.compile(f"(?P<model>.+)@(?P<options>{_OPTION}(?:,{_OPTION})*)")
_LEVEL = re.compile(r"[01]|[01]?\.[0-9]+")


@dataclass(frozen=True)
class Readout:
    """Where an embedding is read, and what normalisation the network is given.

    Attributes:
        layer: number of a block from 0, negative from the end: its output without the network's final normalisation,
            as timm's `forward_intermediates` gives it. None: the network's end.
        pool: how positions become one vector: ``cls`` (the class token), ``avg`` and ``max`` over the patches or the
            map, ``map`` (the network's attention pooling), ``none`` (only where there is one vector anyhow). None: the
            network's own.
        head: ``projection``, or ``none`` for what comes before it. None: the family's default.
        mean, std: normalisation of RGB in [0, 1]. None: that of the weights, as their library or preset states it.
    """

    layer: int | None = None
    pool: str | None = None
    head: str | None = None
    mean: RGB | None = None
    std: RGB | None = None

    @property
    def place(self) -> Readout:
        """Where alone, whatever the normalisation."""
        return Readout(self.layer, self.pool, self.head)

    @property
    def levels(self) -> dict[str, RGB]:
        """``mean`` and ``std`` where they are given."""
        return {key: value for key, value in (("mean", self.mean), ("std", self.std)) if value is not None}

    def or_else(self, default: Readout) -> Readout:
        """This one, with what it leaves open taken from a default."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return Readout(**{**asdict(default), **given})


WHOLE = Readout()


def split(name: str, rest: str) -> tuple[str, Readout]:
    """Of what follows a family's colon: the model, and where to read it. Raises ConfigError for a bad option.

    Args:
        name: the whole name, for errors.
        rest: such as ``vit_base_patch16_224.mae@layer=6,pool=avg``.
    """
    found = _OPTIONS.fullmatch(rest)
    if found is None:
        return rest, WHOLE
    given: dict[str, str] = {}
    for option in found["options"].split(","):
        key, _, value = option.partition("=")
        known = {
            "pool": value in POOLS,
            "head": value in HEADS,
            "layer": bool(re.fullmatch("-?[0-9]{1,4}", value)),
            "mean": _rgb(value) is not None,
            "std": min(_rgb(value) or (0.0,)) > 0.0,
        }
        if key in given or not known.get(key, False):
            raise ConfigError(f"backbone {name}", option, ALLOWED + ", each once")
        given[key] = value
    layer = int(given["layer"]) if "layer" in given else None
    mean, std = (_rgb(given[key]) if key in given else None for key in ("mean", "std"))
    return found["model"], Readout(layer, given.get("pool"), given.get("head"), mean, std)


def _rgb(text: str) -> RGB | None:
    """One number from 0 to 1 for all channels, or three; None for anything else."""
    parts = text.split(":")
    if len(parts) not in (1, 3) or not all(_LEVEL.fullmatch(part) for part in parts):
        return None
    red, green, blue = (float(part) for part in (parts * 3)[:3])
    return (red, green, blue) if max(red, green, blue) <= 1.0 else None
