import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from gradmimic import mimic_scores
from gradmimic.contrastive import clip_losses
from gradmimic.errors import ConfigError
from gradmimic.run.clip.models import open_pair_model

COLORS = ("red", "green", "blue", "white", "black", "yellow", "cyan", "magenta")


def batch_of(pair, dtype=torch.float32):
    images = torch.stack([pair.transform(Image.new("RGB", (40, 30), name)) for name in COLORS])
    tokens = pair.tokenize([f"A picture in {name.upper()}, nothing else." for name in COLORS])
    return SimpleNamespace(images=images.to(dtype), tokens=tokens)


def test_it_learns_which_caption_belongs_to_which_picture():
    pair = open_pair_model("small", image_size=16)
    batch = batch_of(pair)
    optimizer = torch.optim.AdamW(pair.model.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        pair.losses(pair.embed(pair.model, batch)).mean().backward()
        optimizer.step()
    found = pair.embed(pair.model, batch).similarity
    assert found.argmax(1).tolist() == found.argmax(0).tolist() == list(range(8))


@pytest.mark.parametrize("params", ["both", "all"])
def test_scores_of_all_its_parameters_are_the_oracles(params):
    pair, better = (open_pair_model("small", seed=seed, image_size=16) for seed in (0, 1))
    pair.model.double(), better.model.double()
    scored = "all" if params == "all" else pair.scored()
    args = batch_of(pair, torch.float64), lambda m, batch: pair.losses(pair.embed(m, batch))
    exact, found = (
        mimic_scores(pair.model, better.model, *args, engine=engine, params=scored)
        for engine in ("oracle", "forward")
    )
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("size", [None, 16, 75])
def test_pictures_of_any_size(size):
    pair = open_pair_model("small", image_size=size)
    batch = batch_of(pair)
    assert batch.images.shape == (8, 3, size or 64, size or 64)
    found = pair.embed(pair.model, batch)
    torch.testing.assert_close(found.image, pair.encode_images(pair.model, batch.images))
    torch.testing.assert_close(found.text, pair.encode_texts(pair.model, batch.tokens))
    torch.testing.assert_close(pair.losses(found), clip_losses(found))
    by_parts = replace(pair, forward=None).embed(pair.model, batch)
    torch.testing.assert_close(by_parts.similarity, found.similarity)


def test_a_picture_must_hold_two_patches():
    with pytest.raises(ConfigError, match="image_size must be at least 16 for model 'small', got"):
        open_pair_model("small", image_size=15)


def test_captions_without_words_and_with_too_many():
    pair = open_pair_model("small")
    words = pair.tokenize(["", "!?", "dog " * 99, "ein Hündchen 犬"])["words"]
    assert (words > 0).sum(1).tolist() == [0, 0, 32, 3]
    assert pair.encode_texts(pair.model, {"words": words}).isfinite().all()
    again = pickle.loads(pickle.dumps((pair.tokenize, pair.transform)))  # noqa: S301  our own
    assert again == (pair.tokenize, pair.transform)


def test_the_same_seed_gives_the_same_weights_and_leaves_others_alone():
    before = torch.random.get_rng_state()
    one, same, other = (open_pair_model("small", seed=seed).model for seed in (4, 4, 5))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.words.weight, same.words.weight)
    assert not torch.equal(one.words.weight, other.words.weight)
    assert sum(p.numel() * p.element_size() for p in one.parameters()) < 800_000  # bytes
