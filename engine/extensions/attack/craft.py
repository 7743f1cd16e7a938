"""Adversarial attacks on a backbone with its linear class probe, crafted by torchattack.

Pixels of attacks are (B, 3, S, S) float32 in [0, 1]; a canvas is uint8. Attacked canvases are rounded to grey levels,
as in a file, and stay within the radius of the attack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import softplus

from substyle.engine.extensions.attack.config import AttackConfig
from substyle.engine.probes.checkpoint import Probe
from substyle.errors import ConfigError, optional
from substyle.kernels.philox import image_keys

ORIGINAL, ADAPTIVE, NOISE = "identity", "adaptive", "noise"
OVERSHOOT = 2.5  # steps · step size / radius of PGD, so that it reaches the boundary from any start (Madry et al. 2018)
FEWEST = 10  # photographs that a detector is trained on, and tested on
BATCH = 16  # pictures attacked at once; their random starts depend on it
MARGIN = 1.0  # nats by which the adaptive attack lets the wrong class lead; more would not change the class any more
F32 = NDArray[np.float32]
Canvas = NDArray[np.uint8]


def is_network(name: str) -> bool:
    """Whether a backbone is a torch network with one vector per image, judging by its name."""
    return not name.startswith(("control:", "onnx:"))


class Victim(nn.Module):
    """A backbone and its linear class probe; differentiable in the pixels.

    Args:
        backbone: its name, for errors.
        module: maps canvases (B, S, S, 3) to embeddings; its only step that has no gradient is the cast from uint8.
        probe: linear probe of the class.

    Raises:
        ConfigError: the backbone is no torch module (a graph), or its embeddings have no gradient.
    """

    def __init__(
        self, backbone: str, module: nn.Module | None, probe: Probe, *, device: torch.device | None = None
    ) -> None:
        super().__init__()
        allowed = "a backbone that is a torch network, since attacks follow its gradient"
        if module is None:
            raise ConfigError(f"backbone {backbone}", "a graph", allowed)
        self.module = module.eval().requires_grad_(False).to(device)
        self.weight_SCD, self.bias_SC = (v.to(device) for v in (probe.heads.w1, probe.heads.b1))
        self.device = device or torch.device("cpu")
        side = int(probe.metadata["canvas"])
        x = torch.full((1, 3, side, side), 0.5, device=device, requires_grad=True)
        if not self(x).requires_grad:
            raise ConfigError(f"backbone {backbone}", "an embedding without gradient", allowed)

    def embed(self, x_B3SS: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of pixels in [0, 1]."""
        x_BD: torch.Tensor = self.module(255.0 * x_B3SS.permute(0, 2, 3, 1))
        return x_BD

    def classify(self, x_BD: torch.Tensor) -> torch.Tensor:
        """Logarithm of the probabilities (B, C), which are means over the probe's seeds."""
        logits_SBC = torch.einsum("scd,bd->sbc", self.weight_SCD, x_BD) + self.bias_SC[:, None]
        return logits_SBC.log_softmax(2).logsumexp(0) - float(np.log(len(logits_SBC)))

    def forward(self, x_B3SS: torch.Tensor) -> torch.Tensor:
        """Logarithm of the probabilities (B, C)."""
        return self.classify(self.embed(x_B3SS))


class _Patched(nn.Module):
    """A victim that sees the attack within the patch only."""

    def __init__(self, victim: Victim, x_B3SS: torch.Tensor, inside_B1SS: torch.Tensor) -> None:
        super().__init__()
        self.victim, self.x_B3SS, self.inside_B1SS = victim, x_B3SS, inside_B1SS

    def forward(self, x_B3SS: torch.Tensor) -> torch.Tensor:
        seen: torch.Tensor = self.victim(torch.where(self.inside_B1SS, x_B3SS, self.x_B3SS))
        return seen


class Watched(nn.Module):
    """A victim and a linear detector of attacks: log-probabilities (B, C), then the detector's logit, (B, C + 1)."""

    def __init__(self, victim: Victim, weight_D: NDArray[np.floating], bias: float) -> None:
        super().__init__()
        self.victim, self.bias = victim, bias
        self.weight_D = torch.from_numpy(np.asarray(weight_D, np.float32)).to(victim.device)

    def forward(self, x_B3SS: torch.Tensor) -> torch.Tensor:
        """Log-probabilities and the detector's logit, (B, C + 1)."""
        x_BD = self.victim.embed(x_B3SS)
        return torch.cat([self.victim.classify(x_BD), (x_BD @ self.weight_D + self.bias)[:, None]], 1)


def both(outputs: torch.Tensor, label_B: torch.Tensor, weight: float, original_B: torch.Tensor) -> torch.Tensor:
    """Gain of an attack on classifier and detector.

    It is the lead of the best wrong class, up to `MARGIN`, less the loss of a detector that should say "original", down
    to the loss of the original picture: a logit below ``original_B`` would give the attack away as well.

    Source: Carlini and Wagner, "Adversarial Examples Are Not Easily Detected", AISec 2017 (loss on both; ours is
    bounded in both, so that the detector counts once the class is wrong).
    """
    log_BC, detector_B = outputs[:, :-1], outputs[:, -1]
    true_B1 = label_B[:, None]
    wrong_B = log_BC.scatter(1, true_B1, -torch.inf).amax(1)
    lead_B = (wrong_B - log_BC.gather(1, true_B1)[:, 0]).clamp(max=MARGIN)
    return (lead_B - weight * softplus(torch.maximum(detector_B, original_B))).mean()


def craft(
    name: str,
    victim: Victim,
    canvas_BSSC: Canvas,
    label_B: NDArray[np.int64],
    keys: Sequence[str],
    config: AttackConfig,
    *,
    detector: tuple[NDArray[np.floating], float] | None = None,
) -> Canvas:
    """Attack a batch of canvases. Random starts depend on the seed and the keys of the batch.

    Args:
        name: an attack with its radius, such as ``pgd@4``; ``adaptive@8`` needs the detector; ``noise@8`` adds or
            subtracts 8 grey levels at random and is no attack.
        victim: the network that the attack sees; for transfer the surrogate.
        label_B: the true classes, as indices of the probe's.
        detector: weight (D,) and bias of the linear detector.

    Returns:
        attacked canvases (B, S, S, 3) uint8, within the radius.

    Raises:
        MissingError: torchattack is not installed.
    """
    kind, _, level = name.partition("@")
    seed = int(image_keys(config.seed, ["attack:" + name + "\n".join(keys)])[0])
    x = torch.from_numpy(canvas_BSSC).to(victim.device).permute(0, 3, 1, 2).float() / 255
    if kind == NOISE:
        signs = np.random.default_rng(seed).choice([-int(level), int(level)], canvas_BSSC.shape)
        return np.asarray(np.clip(canvas_BSSC + signs, 0, 255), np.uint8)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = _crafted(kind, int(level or 0) / 255, victim, x, label_B, keys, config, detector).detach()
    change = 255 * (made - x)
    # towards zero the norm cannot grow; to the nearest level a whole radius of L∞ cannot be left
    change = change.trunc() if kind == "pgd_l2" else change.round()
    pixels = (255 * x + change).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).cpu().numpy())


def _crafted(
    kind: str,
    radius: float,
    victim: Victim,
    x: torch.Tensor,
    label_B: NDArray[np.int64],
    keys: Sequence[str],
    config: AttackConfig,
    detector: tuple[NDArray[np.floating], float] | None,
) -> torch.Tensor:
    library, steps = torchattack(), config.steps
    y = torch.from_numpy(label_B).to(victim.device)

    def pgd(model: nn.Module, radius: float, steps: int, how: str = "PGD") -> Any:  # noqa: ANN401 (untyped library)
        given = {"eps": radius, "steps": steps, "alpha": OVERSHOOT * radius / steps}
        return getattr(library, how)(model, device=victim.device, **given)

    made: torch.Tensor
    if kind == "fgsm":
        made = library.FGSM(victim, device=victim.device, eps=radius)(x, y)
    elif kind == "pgd":
        made = pgd(victim, radius, steps)(x, y)
    elif kind == "pgd_l2":
        made = pgd(victim, config.l2, steps, "PGDL2")(x, y)
    elif kind == "transfer":
        made = library.MIFGSM(victim, device=victim.device, eps=radius, steps=steps)(x, y)
    elif kind == "patch":
        inside = _patches(keys, x.shape[-1], config).to(x.device)
        made = torch.where(inside, pgd(_Patched(victim, x, inside), 1.0, steps)(x, y), x)
    else:
        assert kind == ADAPTIVE
        assert detector is not None
        watched = Watched(victim, *detector)
        with torch.no_grad():
            original_B = watched(x)[:, -1]
        attack = pgd(watched, radius, 2 * steps)
        attack.lossfn = lambda outputs, label_B: both(outputs, label_B, config.weight, original_B)
        made = attack(x, y)
    return made


def _patches(keys: Sequence[str], side: int, config: AttackConfig) -> torch.Tensor:
    """A square at a random place of each photograph. Shape: (B, 1, S, S) bool."""
    size = max(1, round(config.patch * side))
    inside = torch.zeros(len(keys), 1, side, side, dtype=torch.bool)
    for i, key in enumerate(image_keys(config.seed, [f"patch:{key}" for key in keys]).tolist()):
        top, left = np.random.default_rng(key).integers(side - size + 1, size=2).tolist()
        inside[i, 0, top : top + size, left : left + size] = True
    return inside


def torchattack() -> Any:  # noqa: ANN401 (untyped library)
    """The library of attacks. Raises MissingError if it is not installed."""
    return optional("torchattack", "attack")


BITS, MEDIAN = 5, 2
SQUEEZED = ("bits", "median")


def squeeze(canvas_BSSC: Canvas) -> dict[str, Canvas]:
    """Squeezed canvases: ``bits`` (5 bits per channel) and ``median`` (2 × 2), as for ImageNet in the source.

    Source: Xu, Evans and Qi, "Feature Squeezing", NDSS 2018, without its non-local means.
    """
    from scipy.ndimage import median_filter

    levels = 2**BITS - 1
    reduced = np.round(np.round(canvas_BSSC / 255 * levels) / levels * 255).astype(np.uint8)
    median = median_filter(canvas_BSSC, size=(1, MEDIAN, MEDIAN, 1), mode="reflect")
    return dict(zip(SQUEEZED, (reduced, median), strict=True))


def embedded(victim: Victim, picture_NSSC: Canvas) -> F32:
    """Embeddings (N, D) of canvases by a victim."""
    parts = []
    for start in range(0, len(picture_NSSC), BATCH):
        x = torch.from_numpy(picture_NSSC[start : start + BATCH]).to(victim.device).permute(0, 3, 1, 2).float() / 255
        with torch.no_grad():
            parts.append(victim.embed(x).cpu().numpy())
    return np.concatenate(parts)


def distances(before_NSSC: Canvas, after_NSSC: Canvas) -> tuple[F32, F32]:
    """L∞ and L2 distances (N,) in grey levels."""
    change_ND = (after_NSSC.astype(np.float32) - before_NSSC).reshape(len(before_NSSC), -1)
    return np.abs(change_ND).max(1), np.linalg.norm(change_ND, axis=1)
