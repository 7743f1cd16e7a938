"""Settings of a run, and its tools: decoder, style networks, variant makers."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from substyle.engine.embed_config import EmbedConfig, Settings
from substyle.engine.target import Target
from substyle.pipelines.decode import Decoder
from substyle.pipelines.plugins import load_all
from substyle.pipelines.variants import VariantMaker

STYLE_BLOBS = "styles"  # folder in the cache


class Workshop:
    """The tools of one run, each made once: decoder, style networks, variant makers."""

    def __init__(self, settings: Settings, config: EmbedConfig) -> None:
        config = config.here()
        torch.set_num_threads(config.cores)
        load_all()
        self.settings, self.config = settings, config
        self.target = Target(config.device, config.runtime)
        self.decoder = Decoder(
            settings.canvas, config.images, config.cores, device=config.device, orientation=settings.orientation
        )
        self._maker = functools.cache(self._make)

    def maker(self, transformations: Sequence[str]) -> VariantMaker:
        """A variant maker for some of the suite."""
        return self._maker(tuple(transformations))

    def _make(self, transformations: tuple[str, ...]) -> VariantMaker:
        from substyle.engine.styles import networks_for  # reads ONNX, which a run takes no other use of

        networks = networks_for(
            transformations,
            side=self.settings.canvas,
            threads=self.config.cores,
            precision=self.settings.style_precision,
            cache_dir=STYLE_BLOBS,
            device=self.config.device,
        )
        return VariantMaker(
            transformations,
            side=self.settings.canvas,
            seed=self.settings.seed,
            batch=self.config.images,
            threads=self.config.cores,
            networks=networks,
            device=self.config.device,
        )
