"""float32 in float32: without the 10 bits of mantissa that the tensor cores of a GPU take for it where torch may."""

from __future__ import annotations

import torch


def exact() -> None:
    """Products and convolutions of float32 are float32 from here on, in the whole process.

    Not for a block of code alone: switched to and fro, it would reach what other threads queue meanwhile.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
