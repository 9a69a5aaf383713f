"""The adapter for OpenCLIP, against a stand-in with its interface; test_open_clip_real has it."""

import pickle
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from gradmimic import Canaries, GradMimic, mimic_scores
from gradmimic.errors import ConfigError, MissingExtraError, ReferenceMismatchError, UsageError
from gradmimic.integrations.open_clip import PairLosses, open_model, pair_model_of
from gradmimic.run.clip.answers import Answers
from gradmimic.run.clip.models import open_pair_model, read_pair_reference
from gradmimic.run.clip.prepare import Better, not_transported
from gradmimic.transport import FIRST


class Visual(nn.Module):
    """A tower whose projection is a bare matrix."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(3 * 16, 8)
        self.proj = nn.Parameter(torch.randn(8, 5))

    def forward(self, images):
        return self.trunk(images.flatten(1)).tanh() @ self.proj


class Clip(nn.Module):
    """What the adapter uses of open_clip.CLIP: its names, and what its methods return."""

    def __init__(self, bias=None, as_dict=False):
        super().__init__()
        self.as_dict = as_dict
        self.visual = Visual()
        self.words = nn.Embedding(30, 6)
        self.text_projection = nn.Parameter(torch.randn(6, 5))
        self.logit_scale = nn.Parameter(torch.tensor(1.5))
        self.logit_bias = None if bias is None else nn.Parameter(torch.tensor(bias))

    def encode_image(self, image, normalize=False):
        z = self.visual(image)
        return F.normalize(z, dim=-1) if normalize else z

    def encode_text(self, text, normalize=False):
        z = self.words(text).mean(1).tanh() @ self.text_projection
        return F.normalize(z, dim=-1) if normalize else z

    def forward(self, image, text):
        found = {
            "image_features": self.encode_image(image, True),
            "text_features": self.encode_text(text, True),
            "logit_scale": self.logit_scale.exp(),
        }
        if self.logit_bias is not None:
            found["logit_bias"] = self.logit_bias
        return found if self.as_dict else tuple(found.values())


class ClipLoss(nn.Module):
    def __init__(self, local_loss=False, gather_with_grad=False, world_size=1):
        super().__init__()
        self.local_loss, self.gather_with_grad = local_loss, gather_with_grad
        self.world_size = world_size


class SigLipLoss(nn.Module):
    world_size = 2


class CoCaLoss(nn.Module):
    pass


def transform(picture):
    pixels = np.asarray(picture.convert("RGB").resize((4, 4)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def tokenizer(texts):
    rows = torch.zeros(len(texts), 4, dtype=torch.int64)
    for row, text in zip(rows, texts, strict=True):
        for place, letter in enumerate(text[:4]):
            row[place] = ord(letter) % 30
    return rows


@pytest.fixture
def library(monkeypatch):
    """A module named open_clip that knows one architecture."""
    asked = []

    def create_model_and_transforms(name, pretrained=None, force_image_size=None):
        asked.append((name, pretrained, force_image_size))
        if name != "Tiny":
            raise RuntimeError(f"Model config for '{name}' not found.")
        model = Clip()
        if pretrained is not None:
            nn.init.ones_(model.text_projection)
        return model, None, transform

    made = ModuleType("open_clip")
    made.create_model_and_transforms = create_model_and_transforms
    made.get_tokenizer = lambda name: tokenizer
    made.asked = asked
    monkeypatch.setitem(sys.modules, "open_clip", made)
    return made


def batch_of(pair, dtype=torch.float64):
    chance = np.random.default_rng(0)
    pixels = [chance.integers(0, 256, (9, 7, 3), dtype=np.uint8) for _ in range(5)]
    images = torch.stack([pair.transform(Image.fromarray(own)) for own in pixels]).to(dtype)
    return SimpleNamespace(images=images, tokens=pair.tokenize(["dog", "cat", "cow", "fish", "ox"]))


def pairs_of(**options):
    torch.manual_seed(0)
    return (
        pair_model_of(Clip(**options).double(), transform, tokenizer, name="tiny") for _ in range(2)
    )


@pytest.mark.parametrize("as_dict", [False, True])
@pytest.mark.parametrize("bias", [None, -3.0])
def test_scores_are_the_oracles(bias, as_dict):
    pair, better = pairs_of(bias=bias, as_dict=as_dict)
    assert pair.loss == ("clip" if bias is None else "siglip")
    args = batch_of(pair), lambda m, batch: pair.losses(pair.embed(m, batch))
    for params in (pair.scored("image"), pair.scored("text"), pair.scored(), "all"):
        exact, found = (
            mimic_scores(pair.model, better.model, *args, engine=engine, params=params)
            for engine in ("oracle", "forward")
        )
        torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-10)
    found = pair.embed(pair.model, args[0])
    torch.testing.assert_close(found.image, pair.encode_images(pair.model, args[0].images))
    torch.testing.assert_close(found.text, pair.encode_texts(pair.model, args[0].tokens))


def test_a_training_of_openclips_with_the_loss_of_every_sample():
    pair, better = pairs_of(as_dict=True)
    batch = batch_of(pair)
    loss = PairLosses.like(ClipLoss())
    mimic = GradMimic(pair.model, better.model, params=pair.scored(), align="rotation")
    with mimic:
        losses = loss(**pair.model(batch.images, batch.tokens["text"]))
    mimic.weigh(losses).backward()
    assert losses.shape == mimic.weights.shape == (5,)
    torch.testing.assert_close(losses, pair.losses(pair.embed(pair.model, batch)))
    assert pair.model.visual.proj.grad.norm() > 0


class Task(nn.Module):
    """A model and its loss in one module, as OpenCLIP's training tasks call them."""

    def __init__(self, model, loss):
        super().__init__()
        self.trainable_module, self.loss = model, loss

    def forward(self, images, texts):
        losses = self.loss(**self.trainable_module(images, texts), output_dict=True)
        return losses | {"loss": sum(part for name, part in losses.items() if "_loss" in name)}


@pytest.mark.parametrize("bias", [None, -2.0])
def test_a_training_task_returns_the_loss_of_every_sample(bias):
    pair, better = pairs_of(as_dict=True, bias=bias)
    batch = batch_of(pair)
    task = Task(pair.model, PairLosses(pair.loss))
    mimic = GradMimic(task.trainable_module, better.model, params="all", engine="forward")
    with mimic:
        losses = task(batch.images, batch.tokens["text"])["loss"]
    mimic.weigh(losses).backward()
    torch.testing.assert_close(losses, pair.losses(pair.embed(pair.model, batch)))
    exact = mimic_scores(
        pair.model, better.model, batch, lambda m, b: pair.losses(pair.embed(m, b)),
        params="all", engine="oracle",
    )  # fmt: skip
    torch.testing.assert_close(mimic.scores, exact, rtol=1e-8, atol=1e-10)


def test_canaries_are_of_the_models_own_loss():
    pair, _ = pairs_of(bias=-1.0)
    pairs = pair.embed(pair.model, batch_of(pair))
    drawn = pair.canaries(pairs, list("abcde"), Canaries(rate=1.0))
    i = torch.arange(5)
    every = pairs.table().siglip(i.repeat_interleave(5), i.repeat(5)).view(5, 5)
    wrong = every[~torch.eye(5, dtype=torch.bool)]
    assert all(torch.isclose(wrong, loss).any() for loss in drawn.losses)
    assert len(drawn.losses) == 5


def test_which_losses_can_be_taken_apart():
    told = {
        (local, gather): PairLosses.like(ClipLoss(local, gather, world_size=2))._with_grad
        for local in (False, True)
        for gather in (False, True)
    }
    assert [settings for settings, with_grad in told.items() if not with_grad] == [(True, False)]
    assert PairLosses.like(SigLipLoss())._batch == "global"
    assert PairLosses.like(ClipLoss())._batch == "local"
    with pytest.raises(
        UsageError, match="CoCaLoss has no loss of single pairs here; expected Clip"
    ):
        PairLosses.like(CoCaLoss())


def test_architectures_and_tags(library, tmp_path):
    fresh, same, other = (open_pair_model("open_clip:Tiny", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(fresh.model.visual.proj, same.model.visual.proj)
    assert not torch.equal(fresh.model.visual.proj, other.model.visual.proj)
    tagged = open_pair_model("open_clip:Tiny/laion", image_size=8)
    assert (tagged.name, tagged.model.text_projection.sum()) == ("open_clip:Tiny/laion", 30)
    bare = open_pair_model("open_clip:Tiny/laion", weights=False)
    assert library.asked[-2:] == [("Tiny", "laion", 8), ("Tiny", None, None)]
    torch.save(other.model.state_dict(), tmp_path / "w.pt")
    filled = open_pair_model(f"open_clip:Tiny/{tmp_path}/w.pt", seed=1)
    assert torch.equal(filled.model.visual.proj, other.model.visual.proj)
    assert pickle.loads(pickle.dumps(bare.tokenize)) == bare.tokenize  # noqa: S301  our own
    by_tag = read_pair_reference("open_clip:Tiny/laion", fresh)
    assert by_tag.tensors["text_projection"].sum() == 30
    by_file = read_pair_reference(f"open_clip:Tiny/{tmp_path}/w.pt", fresh)
    assert torch.equal(by_file.tensors["visual.proj"], other.model.visual.proj)
    assert by_file.projections == ("visual.proj", "text_projection")


def test_names_of_transformers_are_read_too(library, tmp_path):
    pair = open_pair_model("open_clip:Tiny")
    state = {"visual_projection.weight": torch.randn(5, 8),
             "text_projection.weight": torch.randn(5, 6)}  # fmt: skip
    torch.save(state, tmp_path / "hf.pt")
    reference = read_pair_reference(str(tmp_path / "hf.pt"), pair)
    assert torch.equal(reference.tensors["visual.proj"], state["visual_projection.weight"].T)
    torch.save({"visual_projection.weight": torch.zeros(1)}, tmp_path / "one.pt")
    with pytest.raises(ReferenceMismatchError, match="lacks 1 of the 2 .*: text_projection"):
        read_pair_reference(str(tmp_path / "one.pt"), pair)


def test_what_openclip_does_not_know_is_explained(library, monkeypatch):
    match = (
        r"no model 'ViT': RuntimeError: Model config for 'ViT' not found\. Expected what open_cl"
    )
    with pytest.raises(ConfigError, match=match):
        open_model("ViT")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gradmimic\[open_clip\]'"):
        open_model("ViT")


def test_towers_that_end_otherwise():
    class Pooled(Clip):
        """As timm pools SigLIP's pictures: the last layer's input comes on top of its output."""

        def __init__(self):
            super().__init__(bias=-1.0)
            del self.visual.proj, self.text_projection
            fc2 = nn.Module()
            fc2.fc2 = nn.Linear(8, 5)
            pool = nn.Module()
            pool.mlp = fc2
            self.visual.trunk = nn.Module()
            self.visual.trunk.attn_pool = pool
            self.text = nn.Module()
            self.text.text_projection = nn.Linear(6, 5)

    pair = pair_model_of(Pooled(), transform, tokenizer)
    assert pair.scored() == [
        "visual.trunk.attn_pool.mlp.fc2.weight", "visual.trunk.attn_pool.mlp.fc2.bias",
        "text.text_projection.weight", "text.text_projection.bias",
    ]  # fmt: skip
    assert "turning the last layers of both towers changes the model" in pair.fixed

    class Unknown(Clip):
        def __init__(self):
            super().__init__()
            del self.visual.proj

    match = (
        r"image tower of Unknown is none of visual\.proj, .*parameters are .*visual\.trunk\.bias"
    )
    with pytest.raises(ConfigError, match=match):
        pair_model_of(Unknown(), transform, tokenizer)


def test_a_reference_from_elsewhere_is_transported(library):
    """Bare matrices and all: the reference is asked about the same pairs."""
    pair, whole = (open_pair_model("open_clip:Tiny", seed=seed) for seed in (1, 2))
    better = Better(read_pair_reference("open_clip:Tiny/laion", pair), whole)
    assert not_transported(pair, pair.scored(), better) is None
    answers = Answers(whole, pair)
    beside = answers.beside(pair)
    options = {"params": pair.scored(), "align": "transport", "engine": "forward"}
    mimic = GradMimic(pair.model, answers, temperature="auto", **options)
    batch = batch_of(pair, torch.float32)
    for _ in range(FIRST + 1):
        with mimic:
            losses = beside.losses(beside.embed(pair.model, batch))
        mimic.weigh(losses).backward()
    assert mimic.scores.std() > 0
