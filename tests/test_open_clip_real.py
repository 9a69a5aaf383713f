"""OpenCLIP itself, where it imports: it needs torchvision."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

pytest.importorskip("torchvision", exc_type=Exception)
open_clip = pytest.importorskip("open_clip", exc_type=Exception)

from gradmimic import GradMimic, mimic_scores  # noqa: E402
from gradmimic.integrations.open_clip import PairLosses, pair_model_of  # noqa: E402
from gradmimic.run.clip.models import (  # noqa: E402
    load_weights,
    open_pair_model,
    pick_pair_alignment,
    read_pair_reference,
)

SHAPES = {
    "bare matrices": (open_clip.CLIP, {}),
    "siglip": (open_clip.CLIP, {"init_logit_bias": -3.0}),
    "text tower of its own": (open_clip.CustomTextCLIP, {"output_dict": True}),
    "resnet": (open_clip.CLIP, {"layers": (1, 1, 1, 1)}),
}


def towers(name, seed):
    """One of OpenCLIP's own classes, tiny."""
    torch.manual_seed(seed)
    kind, more = SHAPES[name]
    vision = {"layers": 1, "width": 64, "head_width": 32, "patch_size": 16, "image_size": 32}
    if "layers" in more:
        vision = {"layers": more["layers"], "width": 8, "head_width": 32, "image_size": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    rest = {key: value for key, value in more.items() if key != "layers"}
    model = kind(16, open_clip.CLIPVisionCfg(**vision), open_clip.CLIPTextCfg(**text), **rest)
    transform = open_clip.image_transform(32, is_train=False)
    return pair_model_of(model.eval().double(), transform, open_clip.tokenize, name=name)


def batch_of(pair, b=4):
    images = torch.randn(b, 3, 32, 32, dtype=torch.float64)
    return SimpleNamespace(images=images, tokens=pair.tokenize(["a dog", "cat", "b", "c"][:b]))


@pytest.mark.parametrize("name", SHAPES)
def test_scores_are_the_oracles_and_losses_openclips(name):
    pair, better = towers(name, 0), towers(name, 1)
    batch = batch_of(pair)
    found = pair.embed(pair.model, batch)
    own = open_clip.loss.SigLipLoss() if name == "siglip" else open_clip.ClipLoss()
    out = pair.model(batch.images, batch.tokens["text"])
    if not isinstance(out, dict):
        out = dict(zip(("image_features", "text_features", "logit_scale", "logit_bias"), out,
                       strict=False))  # fmt: skip
    ours = PairLosses.like(own)(**out, output_dict=True)["contrastive_loss"]
    torch.testing.assert_close(ours.mean(), own(**out))
    torch.testing.assert_close(ours, pair.losses(found))
    torch.testing.assert_close(found.image, pair.encode_images(pair.model, batch.images))
    torch.testing.assert_close(found.text, pair.encode_texts(pair.model, batch.tokens))
    args = batch, lambda model, batch: pair.losses(pair.embed(model, batch))
    for params in (pair.scored("image"), pair.scored("text"), "all"):
        exact, scores = (
            mimic_scores(pair.model, better.model, *args, engine=engine, params=params)
            for engine in ("oracle", "forward")
        )
        torch.testing.assert_close(scores, exact, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["bare matrices", "text tower of its own"])
def test_turned_copies_are_told_apart_from_near_ones_and_brought_back(name, tmp_path):
    """Turning the projections leaves what it says; rotation finds the way back by the inputs."""
    pair, better = towers(name, 0), towers(name, 1)
    turn = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64)).Q
    state = better.model.state_dict()
    turned = state | {key: state[key] @ turn for key in better.scored()}
    for saved, file in ((state, "better.pt"), (turned, "turned.pt")):
        torch.save(saved, tmp_path / file)
    seen = []
    batch = batch_of(pair)
    for file in ("better.pt", "turned.pt"):
        reference = read_pair_reference(str(tmp_path / file), pair)
        mimic = GradMimic(pair.model, reference, params=pair.scored(), align="rotation")
        for _ in range(3):
            with mimic:
                losses = pair.losses(pair.embed(pair.model, batch))
            mimic.weigh(losses)
        seen.append(mimic.scores)
    torch.testing.assert_close(*seen, rtol=1e-5, atol=1e-8)
    assert pick_pair_alignment(reference, pair)[0] == "rotation"
    torch.save(pair.model.state_dict(), tmp_path / "own.pt")
    assert (
        pick_pair_alignment(read_pair_reference(str(tmp_path / "own.pt"), pair), pair)[0] == "none"
    )
    load_weights(pair, str(tmp_path / "turned.pt"))
    found = pair.embed(pair.model, batch).similarity
    torch.testing.assert_close(found, better.embed(better.model, batch).similarity)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["ViT-B-32", "RN50", "coca_ViT-B-32", "convnext_base"])
def test_architectures_by_name(architecture):
    pair = open_pair_model(f"open_clip:{architecture}")
    pictures = [Image.new("RGB", (50, 40), (50 * i, 9, 9)) for i in range(2)]
    batch = SimpleNamespace(
        images=torch.stack([pair.transform(picture) for picture in pictures]),
        tokens=pair.tokenize(["a red square", "a blue one"]),
    )
    pickle.dumps((pair.transform, pair.tokenize))
    assert pair.losses(pair.embed(pair.model, batch)).isfinite().all()


@pytest.mark.slow
def test_siglip_cannot_be_turned():
    model = open_clip.create_model("ViT-B-16-SigLIP")
    pair = pair_model_of(model, lambda picture: picture, open_clip.tokenize)
    assert pair.loss == "siglip"
    assert pair.scored("image")[0].endswith("attn_pool.mlp.fc2.weight")
    assert pair.fixed
