"""Where in a network an embedding is read: options at the end of a backbone's name, such as `@layer=6,pool=avg`."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from substyle.kernels.errors import ConfigError

POOLS = ("cls", "avg", "max", "map", "none")
HEADS = ("projection", "none")
ALLOWED = f"@layer=<number of a block, negative from the end>, pool={'|'.join(POOLS)}, head={'|'.join(HEADS)}"
# a name's own part may hold an @, as a path does: options are plain words and numbers to the very end
_OPTIONS = re.compile(r"(?P<model>.+)@(?P<options>[a-z]+=[a-z0-9-]*(?:,[a-z]+=[a-z0-9-]*)*)")


@dataclass(frozen=True)
class Readout:
    """Where an embedding is read.

    Attributes:
        layer: number of a block from 0, negative from the end: its output without the network's final normalisation,
            as timm's `forward_intermediates` gives it. None: the network's end.
        pool: how positions become one vector: ``cls`` (the class token), ``avg`` and ``max`` over the patches or the
            map, ``map`` (the network's attention pooling), ``none`` (only where there is one vector anyhow). None: the
            network's own.
        head: ``projection``, or ``none`` for what comes before it. None: the family's default.
    """

    layer: int | None = None
    pool: str | None = None
    head: str | None = None

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
        known = {"pool": value in POOLS, "head": value in HEADS, "layer": bool(re.fullmatch("-?[0-9]{1,4}", value))}
        if key in given or not known.get(key, False):
            raise ConfigError(f"backbone {name}", option, ALLOWED + ", each once")
        given[key] = value
    layer = int(given["layer"]) if "layer" in given else None
    return found["model"], Readout(layer, given.get("pool"), given.get("head"))
