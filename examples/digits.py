"""Write scikit-learn's handwritten digits as tables that ``gradmimic run`` reads.

python examples/digits.py runs/digits-data
"""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels, labels = load_digits(return_X_y=True)  # [1797, 64] from 0 to 16, [1797]
    order = np.random.default_rng(0).permutation(len(labels))
    for name, rows in (("test", order[:360]), ("train", order[360:])):
        table = pa.table(
            {
                "pixels": pa.array(list(pixels[rows].astype(np.float32))),
                "digit": labels[rows],
                "picture": [png(image) for image in pixels[rows]],
            }
        )
        pq.write_table(table, folder / f"{name}.parquet")


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(255 - (pixels.reshape(8, 8) * 15.9).astype(np.uint8))
    image.resize((64, 64), Image.Resampling.NEAREST).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
