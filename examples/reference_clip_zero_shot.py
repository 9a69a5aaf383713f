"""CLIP's zero-shot classifier as the reference: it needs the classes' names and no clean label.

python examples/reference_clip_zero_shot.py openai/clip-vit-base-patch32 photos outputs.parquet

photos/ holds one sub-folder of pictures per class, as gradmimic run reads them, named in words:
cat, fire_truck. The model is a hub id or a folder, for transformers.
"""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from gradmimic.data import Samples, read_samples
from gradmimic.outputs import cache_outputs

PROMPT = "a photo of a {}."
BATCH = 64


def main(model: str, folder: Path, out: Path) -> None:
    samples = read_samples(folder)  # their ids are the paths inside the folder, as in a run
    clip = CLIPModel.from_pretrained(model).eval()
    clip.to("cuda" if torch.cuda.is_available() else "cpu")
    processor = CLIPImageProcessor.from_pretrained(model)

    prompts = [PROMPT.format(name.replace("_", " ")) for name in samples.classes]
    tokens = AutoTokenizer.from_pretrained(model)(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = clip.text_model(**tokens.to(clip.device)).pooler_output
        texts = torch.nn.functional.normalize(clip.text_projection(hidden), dim=1)  # [K, d]

    def probabilities(pictures: list[Image.Image]) -> torch.Tensor:
        pixels = processor(pictures, return_tensors="pt")["pixel_values"].to(clip.device)
        hidden = clip.vision_model(pixel_values=pixels).pooler_output
        embeddings = torch.nn.functional.normalize(clip.visual_projection(hidden), dim=1)
        return (clip.logit_scale.exp() * embeddings @ texts.T).softmax(1)  # [b, K]

    outputs = cache_outputs(
        probabilities, batches(samples), out, kind="probabilities", source=f"zero-shot {model}"
    )
    said = outputs.of(samples.ids)[0].argmax(1).numpy()  # [n]
    print(f"{outputs} → {out}")
    print(f"agrees with the given labels: {np.mean(said == samples.labels):.3f}")


def batches(samples: Samples) -> Iterator[tuple[np.ndarray, list[Image.Image]]]:
    """The pictures at their own size: CLIP's processor crops and scales them itself."""
    for rows in np.split(np.arange(len(samples)), range(BATCH, len(samples), BATCH)):
        encoded = (io.BytesIO(samples.shown.image(row)) for row in rows)
        yield samples.ids[rows], [Image.open(file).convert("RGB") for file in encoded]


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
