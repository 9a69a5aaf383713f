"""Pools of pairs that a small model can learn: two colours side by side, and what they are."""

import io

import numpy as np
import torch
from PIL import Image
from web import sample, shard

from gradmimic.data.pairs import PairReader, open_pairs
from gradmimic.run.clip.models import open_pair_model

COLOURS = {
    "red": (230, 30, 30), "green": (30, 200, 40), "blue": (30, 40, 220), "white": (240, 240, 240),
    "black": (15, 15, 15), "yellow": (235, 225, 40), "purple": (150, 40, 170),
    "orange": (240, 140, 20),
}  # fmt: skip
KINDS = [(left, right) for left in COLOURS for right in COLOURS]
SIZE = 16


def painted(left, right, chance):
    """Return a picture of two colours with noise, as a PNG."""
    halves = np.repeat([COLOURS[left], COLOURS[right]], SIZE // 2, axis=0)[None]
    noise = chance.integers(-12, 13, (SIZE, SIZE, 3))
    pixels = np.clip(np.repeat(halves, SIZE, 0) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_pool(folder, shards=4, each=32, swapped=0.0, seed=0):
    """Write shards of pairs, some with the caption of another kind; return the ids of these."""
    chance, wrong = np.random.default_rng(seed), set()
    for number in range(shards):
        samples = []
        for place, kind in enumerate(chance.permutation(len(KINDS))[:each]):
            uid = f"{seed}-{number:03}-{place:03}"
            said = kind
            if chance.random() < swapped:
                wrong.add(uid)
                said = (kind + chance.integers(1, len(KINDS))) % len(KINDS)
            text = "{} left of {}".format(*KINDS[said])
            image = painted(*KINDS[kind], chance)
            samples.append(sample(f"{place:05}", uid, text, image, "png"))
        shard(folder / f"{number:05}.tar", *samples)
    return wrong


def train_small(file, data, steps=60, lr=3e-3, seed=0):
    """Train the small model on a pool, and save its weights."""
    pair = open_pair_model("small", seed=seed, image_size=SIZE)
    reader = PairReader(
        open_pairs(str(data)), pair.transform, pair.tokenize,
        batch_size=64, shuffle=True, seed=0, workers=0, mixed=True,
    )  # fmt: skip
    batches = [batch for batch in reader if len(batch) > 1]
    optimizer = torch.optim.AdamW(pair.model.parameters(), lr)
    for step in range(steps):
        said = pair.embed(pair.model, batches[step % len(batches)])
        optimizer.zero_grad()
        pair.losses(said).mean().backward()
        optimizer.step()
    file.parent.mkdir(exist_ok=True)
    torch.save(pair.model.state_dict(), file)
    return pair
