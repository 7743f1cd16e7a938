"""Part: photographs to canvases and canvases to variants on the device: against the CPU, then their rates."""

from __future__ import annotations

import importlib.util
import io
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu_check import goals, networks, tolerances
from benchmarks.gpu_check.bench import Bench
from benchmarks.gpu_check.rows import Job, Row, correctness, measured
from substyle.pipelines.transforms import base
from substyle.pipelines.transforms.registry import suite

PART = "pixels"
WIDTH, HEIGHT = 500, 375  # of a file, as most of ImageNet's
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
SEED = 3


def run(bench: Bench) -> Iterator[Job]:
    """Correctness of canvases, quarantine and each variant; then rates of decoding, of all variants and of each."""
    from substyle.pipelines.variants import load_all

    load_all()
    names = suite("substance31")
    styles = tuple(name for name in names if base.get(name).made_by == "network")
    yield "canvas", lambda: [_canvas(bench)]
    yield "quarantine", lambda: [_quarantine(bench)]
    for name in names:
        if name not in styles:
            yield name, lambda name=name: [_variant(bench, name)]  # type: ignore[misc]
    yield "styles", lambda: _styles(bench, styles)
    yield "decoding", lambda: _decoding(bench)
    others = tuple(name for name in names if name not in styles)
    for several in (names, others, styles):
        title = f"{len(several)} variants in one pass{', the styles' if several is styles else ''}"
        whole = several is names
        yield title, lambda title=title, several=several, whole=whole: [_rate(bench, title, several, whole)]  # type: ignore[misc]
    for name in names:
        yield f"{name}, rate", lambda name=name: [_rate(bench, name, (name,))]  # type: ignore[misc]


def _device(bench: Bench) -> str:
    return str(bench.device)


def files(count: int, side: int) -> list[bytes]:
    """Encoded smooth random fields of ImageNet's size."""
    fields = [Image.fromarray(field.numpy()).resize((WIDTH, HEIGHT)) for field in networks.canvases(8, side)]
    made = [_encoded(field, "JPEG", quality=90, subsampling=(2, 2, 0)[i % 3]) for i, field in enumerate(fields)]
    return [made[i % len(made)] for i in range(count)]


def _encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:  # noqa: ANN401
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def _decoders(bench: Bench, batch: int) -> list[Callable[..., Any]]:
    from substyle.pipelines.decode import Decoder

    return [Decoder(bench.sizes.canvas, batch, THREADS, device=name) for name in ("cpu", _device(bench))]


def _canvas(bench: Bench) -> Row:
    some = files(8, bench.sizes.canvas)
    whole = Image.open(io.BytesIO(some[0])).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    some += [_encoded(whole, "PNG"), _encoded(whole, "WEBP"), _encoded(whole, "JPEG", progressive=True)]
    some += [_encoded(whole.convert("L"), "JPEG"), _encoded(whole, "JPEG", exif=exif)]
    expected, got = (decoder(some) for decoder in _decoders(bench, len(some)))
    good, text = tolerances.within(got.canvas_BSSC.cpu(), expected.canvas_BSSC, tolerances.CANVAS)
    good = good and got.canvas_BSSC.device == bench.device and bool((got.ok_B == expected.ok_B).all())
    return correctness(PART, "canvas of JPEG, PNG and WebP files", good, text, files=len(some))


def _quarantine(bench: Bench) -> Row:
    """What is found damaged on the CPU is found on the device, also where only the decoder's grey tells it."""
    (blob,) = files(1, bench.sizes.canvas)
    grey = Image.new("RGB", (WIDTH, HEIGHT), (128, 128, 128))
    some = [blob, blob[: len(blob) // 2], blob[: len(blob) // 2] + b"\xff\xd9", b"no image", b"", blob[:20]]
    some += [_encoded(grey, "JPEG"), _encoded(grey, "PNG")[:-30]]
    expected, got = (decoder(some) for decoder in _decoders(bench, len(some)))
    found = [i for i in range(len(some)) if (got.reasons[i] is None) != (expected.reasons[i] is None)]
    empty = not got.canvas_BSSC[torch.from_numpy(~got.ok_B).to(bench.device)].any()
    text = "" if not found else f"decided otherwise for the files {found}: {[expected.reasons[i] for i in found]}"
    return correctness(PART, "quarantine of damaged files", not found and empty, text, files=len(some))


def _maker(
    bench: Bench, names: tuple[str, ...], batch: int, device: str, made: dict[str, base.Network] | None = None
) -> Callable[..., Any]:
    from substyle.pipelines.variants import VariantMaker

    class OfGPU(VariantMaker):  # what a GPU runs in DALI's place, in torch on the CPU
        on_gpu = True

    kind = OfGPU if device == "cpu" and not _dali() else VariantMaker
    return kind(names, side=bench.sizes.canvas, seed=SEED, batch=batch, threads=THREADS, networks=made, device=device)


def _dali() -> bool:
    return importlib.util.find_spec("nvidia") is not None and importlib.util.find_spec("nvidia.dali") is not None


def _batch(bench: Bench, count: int) -> tuple[torch.Tensor, list[str]]:
    canvas = networks.canvases(min(count, 32), bench.sizes.canvas)
    return canvas[torch.arange(count) % len(canvas)], [f"{i}" for i in range(count)]


def _variant(bench: Bench, name: str) -> Row:
    count = bench.sizes.checked
    canvas, keys = _batch(bench, count)
    test_B = np.arange(count) % 2 == 0
    (expected,) = _maker(bench, (name,), count, "cpu")(canvas, keys, test_B)
    (got,) = _maker(bench, (name,), count, _device(bench))(canvas.to(bench.device), keys, test_B)
    good, text = tolerances.within(got.pixels_BSSC.cpu(), expected.pixels_BSSC, tolerances.VARIANTS[name])
    on_device = got.pixels_BSSC.device == got.distinct_B.device == bench.device
    same = torch.equal(got.distinct_B.cpu(), expected.distinct_B)
    reference = "substyle on a CPU" if _dali() else "the GPU's definition in torch on a CPU"
    return correctness(PART, name, good and on_device and same, text, images=count, reference=reference)


def _networks(bench: Bench, styles: tuple[str, ...], **how: Any) -> Any:  # noqa: ANN401
    from substyle.engine.style_transfer.networks import DeviceStyles, generator_for

    side = bench.sizes.canvas
    return DeviceStyles(generator_for(styles), styles, side=side, **{"mode": bench.sizes.mode, **how})


def _styles(bench: Bench, styles: tuple[str, ...]) -> Iterator[Row]:
    """In float32 against the same module on the CPU, which tests hold against OpenVINO's graph."""
    bench.require(20.0)
    canvas, _ = _batch(bench, min(4, bench.sizes.checked))
    expected = _networks(bench, styles, precision="fp32", device=torch.device("cpu"), piece=len(canvas), mode="off")
    pictures = expected(canvas)
    exact = _networks(bench, styles, precision="fp32", device=bench.device, piece=len(canvas), mode="off")
    for name, got in exact(canvas.to(bench.device)).items():
        good, text = tolerances.within(got.cpu(), pictures[name], tolerances.VARIANTS[name])
        yield correctness(PART, f"{name}, float32", good, text, images=len(canvas))


def _decoding(bench: Bench) -> Iterator[Row]:
    bench.require(2.0)
    sizes = bench.sizes
    blobs = files(sizes.images, sizes.canvas)
    decoder = _decoders(bench, sizes.images)[1]
    decoded = {"photographs": int(decoder(blobs).ok_B.sum())}
    yield goals.counted(PART, "photographs decoded", decoded, {"photographs": sizes.images})
    alone = _decoder_alone(bench, sizes.images)
    arrays = [np.frombuffer(blob, np.uint8) for blob in blobs]
    # the host takes part in it: its time is part of the price
    timed = partial(bench.clock.seconds, limit=min(10.0, bench.left() / 4), warm=1, flush=False, ahead=False)
    seconds, ceiling = timed(lambda: decoder(blobs)), timed(lambda: alone.run(blob=arrays))
    facts: dict[str, Any] = {"bytes a file": sum(map(len, blobs)) // len(blobs), "threads": THREADS}
    yield measured(
        PART, f"decode, resize and crop to {sizes.canvas}, batch {sizes.images}", "images", sizes.images, seconds,
        ceiling_per_s=sizes.images / ceiling["median"], ceiling="DALI's decoder alone", facts=facts,
    )  # fmt: skip


def _decoder_alone(bench: Bench, batch: int) -> Any:  # noqa: ANN401 - DALI ships no types
    from nvidia.dali import fn, types

    from substyle.pipelines.dali import new_pipeline

    pipeline = new_pipeline(batch, THREADS, bench.device)
    with pipeline:
        blob = fn.external_source(name="blob", dtype=types.UINT8, ndim=1)
        device = "cpu" if bench.device.type == "cpu" else "mixed"
        pipeline.set_outputs(fn.decoders.image(blob, device=device, output_type=types.RGB, jpeg_fancy_upsampling=True))
    pipeline.build()
    return pipeline


def _rate(bench: Bench, title: str, names: tuple[str, ...], whole: bool = False) -> Row:
    """A maker of these, distinctness included; the least that must move: the canvas once, each variant once."""
    bench.require(2.0)
    sizes = bench.sizes
    styles = tuple(name for name in names if base.get(name).made_by == "network")
    made = {"multistyle": _networks(bench, styles, precision="bf16", device=bench.device)} if styles else None
    maker = _maker(bench, names, sizes.images, _device(bench), made)
    canvas, keys = _batch(bench, sizes.images)
    there = canvas.to(bench.device)

    def work() -> None:
        for _ in maker(there, keys):
            pass

    seconds = bench.clock.seconds(work, limit=min(2.0, bench.left() / 8), warm=2, ahead=False)
    least = there.numel() * (1 + len(names)) / bench.bandwidth
    facts: dict[str, Any] = {"us each": 1e6 * seconds["median"] / sizes.images}
    if whole:  # identity takes nothing, nor counts
        made_of = [name for name in names if base.get(name).made_by != "identity"]
        facts[goals.MEAN_VARIANT] = facts["us each"] / len(made_of)
    return measured(
        PART, f"{title}, batch {sizes.images}, side {sizes.canvas}", "images", sizes.images, seconds,
        ceiling_per_s=sizes.images / least, ceiling="the measured copy", facts=facts,
    )  # fmt: skip
