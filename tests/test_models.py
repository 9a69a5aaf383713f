import numpy as np
import pytest
import torch

from gradmimic.errors import ConfigError
from gradmimic.run.models import Scale, build_model


def test_features_get_a_mean_each_and_one_spread():
    x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32) * [1, 5, 9] + [2, 0, -7]
    centred = x - x.mean(0)
    expected = centred / np.sqrt((centred**2).mean())
    assert Scale(x)(torch.tensor(x)).numpy() == pytest.approx(expected, abs=1e-5)


def test_images_get_a_mean_per_channel_and_one_spread():
    x = np.random.default_rng(0).integers(0, 256, (90, 3, 2, 5), dtype=np.uint8)
    x[:, 1] //= 4
    scaled = Scale(x)(torch.tensor(x))
    assert scaled.dtype == torch.float32
    assert scaled.mean(dim=(0, 2, 3)).tolist() == pytest.approx([0, 0, 0], abs=1e-5)
    assert float(scaled.square().mean()) == pytest.approx(1, rel=1e-5)


def test_constant_inputs_stay_finite():
    x = np.full((3, 2), 7, dtype=np.float32)
    assert Scale(x)(torch.tensor(x)).tolist() == [[0, 0]] * 3


@pytest.mark.parametrize(
    ("kind", "shape"), [("linear", (9, 4)), ("mlp", (9, 4)), ("cnn", (9, 1, 3, 3))]
)
def test_the_seed_alone_fixes_the_weights(kind, shape):
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    torch.manual_seed(5)
    first = build_model(kind, inputs, 3, hidden=4, seed=1).state_dict()
    drawn = torch.rand(1)
    again = build_model(kind, inputs, 3, hidden=4, seed=1).state_dict()
    other = build_model(kind, inputs, 3, hidden=4, seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head.weight"], other["head.weight"])
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)  # the caller's random numbers are left alone


@pytest.mark.parametrize("size", range(1, 10))
@pytest.mark.parametrize("channels", [1, 3])
def test_the_cnn_takes_images_of_any_size(size, channels):
    inputs = np.random.default_rng(0).integers(0, 256, (4, channels, size, size), dtype=np.uint8)
    model = build_model("cnn", inputs, 5, hidden=2, seed=0)
    logits = model(torch.tensor(inputs))
    assert logits.shape == (4, 5)
    assert logits.isfinite().all()


def test_the_head_of_what_is_encoded_is_the_model():
    inputs = np.random.default_rng(0).normal(size=(1500, 4)).astype(np.float32)
    model, x = build_model("mlp", inputs, 3, hidden=8, seed=0), torch.tensor(inputs)
    encoded = model.encode(x)
    assert encoded.shape == (1500, 8)
    assert not encoded.requires_grad
    assert torch.allclose(model.head(encoded), model(x))


@pytest.mark.parametrize(
    ("kind", "shape"), [("cnn", (2, 4)), ("linear", (2, 3, 8, 8)), ("mlp", (2, 1, 2, 2))]
)
def test_models_refuse_other_shapes(kind, shape):
    message = rf"model='{kind}' does not take inputs of shape \[{shape[1]}.*; linear and mlp expect"
    with pytest.raises(ConfigError, match=message):
        build_model(kind, np.zeros(shape, dtype=np.float32), 3, hidden=4, seed=0)
