"""The table `[attack]` of a study file."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictInt

from substyle.engine.base_config import SamplingConfig
from substyle.pipelines.validation import Distinct, validated

Attack = Literal["fgsm", "pgd", "pgd_l2", "transfer", "patch"]
ATTACKS: tuple[Attack, ...] = ("fgsm", "pgd", "pgd_l2", "transfer", "patch")


@validated("attack")
class AttackConfig(SamplingConfig):
    """Adversarial attacks on each backbone with its linear class probe, and their detection."""

    attacks: Distinct[Attack] = ()
    """``fgsm`` (one step), ``pgd`` (L∞), ``pgd_l2`` (L2), ``transfer`` (MI-FGSM on another backbone of the study),
    ``patch`` (PGD of any strength within a square)."""
    backbones: tuple[str, ...] = ()
    """Backbones of the study to attack. Default: all except controls."""
    epsilons: Distinct[Annotated[StrictInt, Field(ge=1, le=64)]] = (1, 2, 4, 8)
    """L∞ radii of fgsm and pgd in grey levels; transfer and the adaptive attack use the largest."""
    l2: ClassVar[float] = 3.0
    """L2 radius of pgd_l2, of pixels in [0, 1]."""
    patch: ClassVar[float] = 0.2
    """Side of the patch as a fraction of the canvas."""
    steps: Annotated[StrictInt, Field(ge=1, le=1000)] = 10
    """Steps of iterative attacks; the adaptive attack takes twice as many."""
    weight: ClassVar[float] = 1.0
    """Weight of the detector in the loss of the adaptive attack."""
    photographs: Annotated[StrictInt, Field(ge=0)] = 200
    """Maximum number of training and of test photographs; 0 attacks all."""

    def names(self, *, transfer: bool) -> list[str]:
        """Return the attacks with their L∞ radius: ``fgsm@1``, …, ``patch``. Without ``transfer`` if there is none."""
        found = []
        for attack in self.attacks:
            if attack in ("fgsm", "pgd"):
                found += [f"{attack}@{epsilon}" for epsilon in self.epsilons]
            elif attack == "transfer":
                found += [f"transfer@{max(self.epsilons)}"] if transfer else []
            else:
                found.append(attack)
        return found
