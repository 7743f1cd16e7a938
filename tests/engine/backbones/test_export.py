from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import photograph
from torch import nn

from substyle.engine.backbones.export import Preprocessed, cubic_matrix


class Flat(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)


@pytest.mark.parametrize("target", [112, 192, 224, 240, 384])
def test_resize_agrees_with_pillow(target: int) -> None:
    picture = photograph(1, 224, 224)
    module = Preprocessed(Flat(), canvas=224, side=target, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    ours = module(torch.from_numpy(np.array(picture))[None]).view(3, target, target).permute(1, 2, 0) * 255
    theirs = np.asarray(picture.resize((target, target), Image.Resampling.BICUBIC), dtype=np.float32)
    # Pillow rounds to whole levels after each axis
    assert np.abs(ours.numpy() - theirs).max() <= 1.5


def test_rows_of_the_matrix_sum_to_one() -> None:
    np.testing.assert_allclose(cubic_matrix(224, 160).sum(1).numpy(), 1.0, atol=1e-5)


def test_normalisation_and_layout() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    module = Preprocessed(Flat(), canvas=8, side=8, mean=mean, std=std)
    pixels = torch.randint(0, 256, (2, 8, 8, 3), dtype=torch.uint8)
    expected = ((pixels.float() / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2).flatten(1)
    torch.testing.assert_close(module(pixels), expected)
