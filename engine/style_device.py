"""Style transfer on a GPU: the generator compiled by torch, in a CUDA graph with an output for each style.

A canvas batch is cut into pieces of one size, the last padded, which go through the graph one after the other on the
current stream; canvases and pictures never leave the device. On a CPU it runs without graphs, for tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from substyle.engine.backbones.runtimes.captured import capture
from substyle.engine.backbones.runtimes.exact import exact
from substyle.engine.backbones.runtimes.torch_compiled import Mode, compiled
from substyle.engine.backbones.runtimes.typed_export import TYPES
from substyle.engine.precision import Precision
from substyle.engine.style_graphs import Generator, require_side
from substyle.engine.style_module import StyleModule
from substyle.kernels.errors import ConfigError

PIECE = 64  # pictures that go through the network at once; the largest activation is 0.4 GB, at a canvas of 224


class DeviceStyles:
    """A compiled style generator; satisfies :class:`substyle.pipelines.transforms.base.Network`.

    Args:
        generator: its weights.
        styles: a name for each of its styles.
        side: canvas side S, a multiple of 4.
        precision: of the convolutions.
        device: where it runs.
        piece: pictures of one execution.
        mode: of torch.compile; "off" compiles nothing.

    Attributes:
        fallback: why compilation failed, where it did; the module runs uncompiled then.
    """

    def __init__(
        self,
        generator: Generator,
        styles: Sequence[str],
        *,
        side: int,
        precision: Precision,
        device: torch.device,
        piece: int = PIECE,
        mode: Mode = "default",
    ) -> None:
        require_side(side)
        self.styles, self.side, self.precision, self.device = tuple(styles), side, precision, device
        module = StyleModule(generator, TYPES[precision]).eval()
        module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.canvas_BSSC = torch.zeros(piece, side, side, 3, dtype=torch.uint8, device=device)
        exact()
        run, self.fallback = compiled(module, self.canvas_BSSC, mode)
        self._run: Callable[[], tuple[torch.Tensor, ...]] = lambda: run(self.canvas_BSSC)
        if device.type == "cuda":
            _, graph, output = capture(lambda stream: run(self.canvas_BSSC), device)
            pictures: tuple[torch.Tensor, ...] = output

            def replay() -> tuple[torch.Tensor, ...]:
                graph.replay()
                return pictures

            self._run = replay

    def __call__(self, canvas_BSSC: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 canvas (B, S, S, 3), any B, to one uint8 (B, S, S, 3) tensor for each style, on the device."""
        if tuple(canvas_BSSC.shape[1:]) != (self.side, self.side, 3):
            raise ConfigError("canvas", tuple(canvas_BSSC.shape), f"(B, {self.side}, {self.side}, 3)")
        made = {name: torch.empty_like(canvas_BSSC, device=self.device) for name in self.styles}
        with torch.no_grad():
            for first in range(0, len(canvas_BSSC), len(self.canvas_BSSC)):
                piece = canvas_BSSC[first : first + len(self.canvas_BSSC)]
                # what an earlier piece left behind it is another picture's, which does not matter to these
                self.canvas_BSSC[: len(piece)].copy_(piece, non_blocking=True)
                for pictures, out in zip(self._run(), made.values(), strict=True):
                    out[first : first + len(piece)].copy_(pictures[: len(piece)])
        return made
