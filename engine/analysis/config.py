"""How much of a store the analysis looks at, and with what seed."""

from __future__ import annotations

from dataclasses import dataclass, fields

from substyle.kernels.errors import ConfigError


@dataclass(frozen=True)
class AnalysisConfig:
    """Settings of :func:`substyle.engine.analysis.run.analyze`. Raises ConfigError("analysis.<field>", ...).

    Attributes:
        max_queries: most variants of test photographs that are used as queries (whole photographs are drawn).
        max_bank: most variants of training photographs that are searched in.
        max_images: most photographs of each split that the geometry looks at.
        ks: numbers of neighbours of the k-NN classifier.
        seed: picks the samples, the bootstrap and the start of k-means.
        threads: CPU threads; 0 leaves the libraries' own setting.
    """

    max_queries: int = 5_000
    max_bank: int = 100_000
    max_images: int = 2_000
    ks: tuple[int, ...] = (1, 5, 10, 50)
    seed: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        at_least = {"max_queries": 1, "max_bank": 1, "max_images": 2, "seed": 0, "threads": 0}
        for each in fields(self):
            value = getattr(self, each.name)
            if each.name == "ks":
                good = isinstance(value, tuple) and value and all(_is_int(k) and 1 <= k <= 2048 for k in value)
                if not good or list(value) != sorted(set(value)):
                    raise ConfigError("analysis.ks", value, "ascending whole numbers from 1 to 2048, at least one")
            elif not _is_int(value) or value < at_least[each.name]:
                raise ConfigError(f"analysis.{each.name}", value, f"a whole number, at least {at_least[each.name]}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
