"""CLIPModel and SiglipModel behind the one interface, against what transformers itself computes."""

import pickle
from types import SimpleNamespace

import hf_towers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from gradmimic import GradMimic, mimic_scores
from gradmimic.errors import ConfigError
from gradmimic.run.clip.models import open_pair_model

KINDS = ("clip", "siglip")
CAPTIONS = ["a red dog", "the cat on the grass", "dog", "a blue cat on a red dog " * 3]


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(1)
    hf_towers.save(path, request.param)
    return path


def pictures(seed=0):
    chance = np.random.default_rng(seed)
    shapes = (40, 60), (70, 33), (20, 25), (32, 32)
    return [Image.fromarray(chance.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in shapes]


def batch_of(pair, dtype=torch.float32):
    images = torch.stack([pair.transform(picture) for picture in pictures()]).to(dtype)
    return SimpleNamespace(images=images, tokens=pair.tokenize(CAPTIONS))


def test_losses_and_embeddings_are_those_of_transformers(folder):
    pair = open_pair_model(f"hf:{folder}")
    batch = batch_of(pair)
    found = pair.embed(pair.model, batch)
    own = pair.model(pixel_values=batch.images, **batch.tokens, return_loss=True)
    torch.testing.assert_close(pair.losses(found).mean(), own.loss)
    torch.testing.assert_close(found.similarity, own.logits_per_image)
    torch.testing.assert_close(found.image, pair.encode_images(pair.model, batch.images))
    torch.testing.assert_close(found.text, pair.encode_texts(pair.model, batch.tokens))
    torch.testing.assert_close(found.image.norm(dim=1), torch.ones(4))
    assert (found.bias is None) == (pair.loss == "clip")


def test_pictures_are_prepared_as_transformers_does(folder):
    pair = open_pair_model(f"hf:{folder}")
    library = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    kind = library.CLIPImageProcessorPil
    if pair.loss == "siglip":
        from transformers.models.siglip import image_processing_pil_siglip

        kind = image_processing_pil_siglip.SiglipImageProcessorPil
    process = kind.from_pretrained(folder)
    for picture in pictures():
        (expected,) = process(picture, return_tensors="pt").pixel_values
        assert expected.shape == (3, 32, 32)
        torch.testing.assert_close(pair.transform(picture), expected, rtol=1e-4, atol=1e-5)


def test_grey_and_transparent_pictures_of_any_shape_go_in(folder):
    pair = open_pair_model(f"hf:{folder}")
    for picture in (Image.new("L", (1, 90)), Image.new("RGBA", (300, 2)), Image.new("P", (5, 5))):
        assert pair.transform(picture).shape == (3, 32, 32)


def test_captions_are_cut_and_padded_as_each_was_trained(folder):
    pair = open_pair_model(f"hf:{folder}")
    short, long = pair.tokenize(CAPTIONS[:1]), pair.tokenize(CAPTIONS)
    assert long["input_ids"].shape == (4, hf_towers.LONGEST)
    assert long["input_ids"][3, -1] == 2  # the end, after what was left of the long one
    if pair.loss == "clip":
        assert short["input_ids"].tolist() == [[1, 4, 5, 7, 2]]
        assert long["attention_mask"].sum(1).tolist() == [5, 7, 3, 12]
    else:  # SigLIP sees all its padding
        assert short["input_ids"].shape == (1, hf_towers.LONGEST)
        assert "attention_mask" not in long
    again = pickle.loads(pickle.dumps((pair.transform, pair.tokenize)))  # noqa: S301  our own
    assert torch.equal(again[1](CAPTIONS)["input_ids"], long["input_ids"])
    assert torch.equal(again[0](pictures()[0]), pair.transform(pictures()[0]))


def test_fresh_weights_come_from_the_seed(folder):
    one, same, other = (
        open_pair_model(f"hf:{folder}", weights=False, seed=seed) for seed in (5, 5, 6)
    )
    own = open_pair_model(f"hf:{folder}")
    name = one.scored("text")[0]
    weight = one.model.get_parameter(name)
    assert torch.equal(weight, same.model.get_parameter(name))
    for another in (other, own):
        assert not torch.equal(weight, another.model.get_parameter(name))


@pytest.mark.parametrize("params", ["image", "text", "both", "all"])
def test_scores_are_the_oracles_whatever_is_scored(folder, params):
    pair = open_pair_model(f"hf:{folder}")
    better = open_pair_model(f"hf:{folder}", weights=False, seed=3)
    pair.model.double(), better.model.double()
    batch = batch_of(pair, torch.float64)
    losses = lambda model, batch: pair.losses(pair.embed(model, batch))
    scored = {"params": "all" if params == "all" else pair.scored(params)}
    exact = mimic_scores(pair.model, better.model, batch, losses, engine="oracle", **scored)
    found = mimic_scores(pair.model, better.model, batch, losses, engine="forward", **scored)
    torch.testing.assert_close(found, exact, rtol=1e-8, atol=1e-10)
    mimic = GradMimic(pair.model.train(), better.model, engine="forward", **scored)
    with mimic:
        values = losses(pair.model, batch)
    mimic.weigh(values).backward()
    torch.testing.assert_close(mimic.scores, exact, rtol=1e-8, atol=1e-10)


def test_turning_both_projections_changes_siglip_and_not_clip(folder):
    pair = open_pair_model(f"hf:{folder}")
    batch = batch_of(pair)
    before = pair.embed(pair.model, batch).similarity.detach()
    names = pair.scored()
    e = len(pair.model.get_parameter(names[0]))
    turn = torch.linalg.qr(torch.randn(e, e)).Q
    with torch.no_grad():
        for name in names:
            parameter = pair.model.get_parameter(name)
            parameter.copy_(turn @ parameter)
    after = pair.embed(pair.model, batch).similarity
    assert torch.allclose(before, after, atol=1e-3) == (pair.fixed == "")
    assert (pair.fixed == "") == (pair.loss == "clip")


def test_pictures_can_be_of_another_size(folder):
    pair = open_pair_model(f"hf:{folder}", image_size=48)
    batch = batch_of(pair)
    assert batch.images.shape == (4, 3, 48, 48)
    found = pair.embed(pair.model, batch)
    torch.testing.assert_close(found.image, pair.encode_images(pair.model, batch.images))


def test_what_is_no_such_model_is_refused(tmp_path, folder):
    with pytest.raises(ConfigError, match="configuration of .*nowhere could not be read.*Expected"):
        open_pair_model(f"hf:{tmp_path}/nowhere")
    transformers.BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="of the type 'bert'; expected one of clip, siglip"):
        open_pair_model(f"hf:{tmp_path}")
    config = (folder / "config.json").read_text()
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ConfigError, match="the weights of .* could not be read"):
        open_pair_model(f"hf:{tmp_path}")
    with pytest.raises(ConfigError, match="the tokenizer of .* (could not be read|knows 2 tokens)"):
        open_pair_model(f"hf:{tmp_path}", weights=False)
