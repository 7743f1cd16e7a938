"""What probing one backbone gave: the numbers, and per-image scores that let two backbones be compared in pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.kernels.errors import SubstyleError

_RESULTS, _SCORES = "probes.json", "scores.npz"


@dataclass(frozen=True)
class ProbeOutcome:
    """Results of one backbone.

    Attributes:
        results: the keys ``fine``, ``coarse``, ... of a backbone in results.json, plain JSON.
        scores: by ``task/head`` (also ``multitask/semantic``, ``multitask/twin-fine``, ...), (T, N) float32 over test
            images: share of seeds that are right, NaN where a row does not count.
        keys: the N test images.
        transformations, coarse, roles: of the T rows.
        bootstrap, seed: resamples of comparisons and their seed.
    """

    results: dict[str, Any]
    scores: dict[str, NDArray[np.float32]]
    keys: tuple[str, ...]
    transformations: tuple[str, ...]
    coarse: tuple[str, ...]
    roles: tuple[str, ...]
    bootstrap: int = 2000
    seed: int = 0

    def save(self, folder: Path) -> None:
        """Write ``probes.json`` and ``scores.npz`` into a folder, each in one rename, the JSON last."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / (_SCORES + ".tmp")
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **self.scores)
        temporary.replace(folder / _SCORES)
        document = {
            "results": self.results,
            "keys": self.keys,
            "transformations": self.transformations,
            "coarse": self.coarse,
            "roles": self.roles,
            "bootstrap": self.bootstrap,
            "seed": self.seed,
        }
        temporary = folder / (_RESULTS + ".tmp")
        temporary.write_text(json.dumps(document, allow_nan=False), encoding="utf-8")
        temporary.replace(folder / _RESULTS)

    @classmethod
    def load(cls, folder: Path) -> ProbeOutcome:
        """Read what :meth:`save` wrote. Raises SubstyleError where it is missing or damaged."""
        try:
            document = json.loads((folder / _RESULTS).read_text(encoding="utf-8"))
            with np.load(folder / _SCORES, allow_pickle=False) as file:
                scores = {name: np.asarray(file[name], np.float32) for name in file.files}
            outcome = cls(
                document["results"],
                scores,
                tuple(document["keys"]),
                tuple(document["transformations"]),
                tuple(document["coarse"]),
                tuple(document["roles"]),
                int(document["bootstrap"]),
                int(document["seed"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SubstyleError(f"{folder} holds no readable probe results: {error}") from error
        shape = (len(outcome.transformations), len(outcome.keys))
        if any(score.shape != shape for score in scores.values()):
            raise SubstyleError(f"{folder}: scores and keys disagree")
        return outcome
