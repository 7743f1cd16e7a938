"""What probing one backbone gave: the numbers, and per-image scores that let two backbones be compared in pairs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from substyle.kernels.errors import SubstyleError

_RESULTS, _SCORES = "probes.json", "scores.npz"
_BY_RESAMPLE = "by_resample:"  # before the names of these arrays in the file of scores


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
        by_resample: by the name of a score, (S, T) float32: accuracies on each transformation of the S probes that were
            trained on resampled training images; a score may have none.
        group_N: groups of the test images that are resampled whole; None resamples images.
    """

    results: dict[str, Any]
    scores: dict[str, NDArray[np.float32]]
    keys: tuple[str, ...]
    transformations: tuple[str, ...]
    coarse: tuple[str, ...]
    roles: tuple[str, ...]
    bootstrap: int = 2000
    seed: int = 0
    by_resample: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    group_N: tuple[int, ...] | None = None

    def save(self, folder: Path) -> None:
        """Write ``probes.json`` and ``scores.npz`` into a folder, each in one rename, the JSON last."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / (_SCORES + ".tmp")
        with temporary.open("wb") as file:
            by_resample = {_BY_RESAMPLE + name: score_ST for name, score_ST in self.by_resample.items()}
            np.savez(file, allow_pickle=False, **self.scores, **by_resample)
        temporary.replace(folder / _SCORES)
        document = {
            "results": self.results,
            "keys": self.keys,
            "transformations": self.transformations,
            "coarse": self.coarse,
            "roles": self.roles,
            "bootstrap": self.bootstrap,
            "seed": self.seed,
            "group_N": self.group_N,
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
                arrays = {name: np.asarray(file[name], np.float32) for name in file.files}
            group_N = document.get("group_N")
            outcome = cls(
                document["results"],
                {name: array for name, array in arrays.items() if not name.startswith(_BY_RESAMPLE)},
                tuple(document["keys"]),
                tuple(document["transformations"]),
                tuple(document["coarse"]),
                tuple(document["roles"]),
                int(document["bootstrap"]),
                int(document["seed"]),
                {n.removeprefix(_BY_RESAMPLE): array for n, array in arrays.items() if n.startswith(_BY_RESAMPLE)},
                None if group_N is None else tuple(int(group) for group in group_N),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise SubstyleError(f"{folder} holds no readable probe results: {error}") from error
        shape = (len(outcome.transformations), len(outcome.keys))
        good = all(score.shape == shape for score in outcome.scores.values())
        good = good and all(s.ndim == 2 and s.shape[1] == shape[0] for s in outcome.by_resample.values())
        if not good or (outcome.group_N is not None and len(outcome.group_N) != shape[1]):
            raise SubstyleError(f"{folder}: scores and keys disagree")
        return outcome
