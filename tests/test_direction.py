import math

import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F

from gradmimic import mimic_scores
from gradmimic.direction import LastUsed, choose, direction, find_head
from gradmimic.errors import DirectionError, ParameterError
from gradmimic.reference import load_reference


class Named(nn.Module):
    """A trunk and a head under the names that common models use."""

    def __init__(self, head):
        super().__init__()
        self.trunk = nn.Linear(2, 2)
        *path, last = head.split(".")
        parent = self
        for name in path:
            child = nn.Module()
            setattr(parent, name, child)
            parent = child
        setattr(parent, last, nn.Linear(2, 3))


@pytest.mark.parametrize("head", ["classifier", "fc", "head", "heads.head", "lm_head"])
def test_the_head_is_found_under_its_common_names(head):
    model = Named(head)
    assert find_head(model) == head
    assert list(choose(model, "head").parameters) == [f"{head}.weight", f"{head}.bias"]


def test_the_head_of_hugging_face_models():
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    for config, build, head in (
        (transformers.BertConfig(intermediate_size=8, vocab_size=20, **small),
         transformers.BertForSequenceClassification, "classifier"),
        (transformers.RobertaConfig(intermediate_size=8, vocab_size=20, **small),
         transformers.RobertaForSequenceClassification, "classifier.out_proj"),
        (transformers.ViTConfig(intermediate_size=8, image_size=8, patch_size=4, **small),
         transformers.ViTForImageClassification, "classifier"),
        (transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1]),
         transformers.ResNetForImageClassification, "classifier.1"),
        (transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=20),
         transformers.GPT2LMHeadModel, "lm_head"),
        (transformers.LlamaConfig(intermediate_size=8, vocab_size=20, **small),
         transformers.LlamaForCausalLM, "lm_head"),
    ):  # fmt: skip
        model = build(config)
        assert find_head(model) == head, build
        name = f"{head}.weight"
        assert name in choose(model, "head").parameters


def test_a_hugging_face_classifier_is_scored_as_it_comes():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        vocab_size=20, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).double()
    reference = zoo.nearby(model)
    words, y = torch.randint(20, (5, 7)), torch.tensor([0, 1, 0, 1, 1])

    def losses(m, _):
        return F.cross_entropy(m(input_ids=words).logits, y, reduction="none")

    for params in ("head", "all"):
        scores, expected = (
            mimic_scores(model, reference, None, losses, params=params, engine=engine)
            for engine in ("forward", "oracle")
        )
        torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-12)


class HeadFirst(nn.Module):
    """The layer that is registered first is used last, and one more is never used."""

    def __init__(self):
        super().__init__()
        self.fc, self.body, self.spare = nn.Linear(4, 4), nn.Linear(3, 4), nn.Linear(9, 9)

    def forward(self, x):
        return self.fc(torch.tanh(self.body(x)))


def test_the_module_used_last_is_the_head_wherever_it_was_registered():
    model = HeadFirst().double()
    reference, batch = zoo.nearby(model), zoo.draw("mlp", 6)
    watch = LastUsed(model)
    model(batch.x)
    watch.stop()
    assert (find_head(model), watch.name) == ("spare", "fc")
    losses = zoo.losses_of("cross-entropy")
    for engine in ("forward", "oracle"):
        torch.testing.assert_close(
            mimic_scores(model, reference, batch, losses, engine=engine),
            mimic_scores(model, reference, batch, losses, params="fc.*", engine=engine),
        )


def test_patterns_and_callables_choose_parameters():
    model, _ = zoo.build("transformer", 2)
    assert set(choose(model, ["head.*", "*.norm1.*"]).parameters) == {
        "head.weight", "head.bias", "layer.norm1.weight", "layer.norm1.bias",
    }  # fmt: skip
    biases = choose(model, lambda name, parameter: parameter.ndim == 1)
    assert all(p.ndim == 1 for p in biases.parameters.values())
    assert len(choose(model, "all").parameters) == len(list(model.parameters()))


def test_no_match_lists_the_names():
    with pytest.raises(ParameterError, match=r"matches no parameter.*The names are: 0\.weight"):
        choose(nn.Sequential(nn.Linear(1, 1)), "classifier.*")
    with pytest.raises(ParameterError, match="ReLU has no parameters"):
        choose(nn.ReLU())


def test_the_direction_follows_the_weights():
    model, reference = zoo.build("mlp", 3)
    subset = choose(model, "all")
    target = load_reference(reference).match(model, subset)
    before = direction(subset, target)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    after = direction(subset, target)
    for name in subset.parameters:
        torch.testing.assert_close(after.tensors[name], before.tensors[name] - 1)
    flat = torch.cat([tensor.flatten() for tensor in after.tensors.values()])
    assert after.norm == pytest.approx(flat.norm().item())


def test_a_zero_direction_and_one_with_nan_are_errors():
    model, _ = zoo.build("mlp", 3)
    batch, losses = zoo.draw("mlp", 3), zoo.losses_of("mse")
    with pytest.raises(DirectionError, match="direction is zero.*not a copy of the model"):
        mimic_scores(model, model, batch, losses)
    broken = {name: value.clone() for name, value in model.state_dict().items()}
    broken["2.bias"][0] = math.nan
    with pytest.raises(DirectionError, match="norm is nan.*NaN or infinite"):
        mimic_scores(model, broken, batch, losses)


def test_what_is_swapped_is_put_back_whatever_happens():
    model, reference = zoo.build("mlp", 3)
    subset = choose(model, "all")
    originals = dict(model.named_parameters())
    with pytest.raises(KeyError), subset.swapped(dict(reference.named_parameters())):
        assert model[0].weight is reference[0].weight
        raise KeyError
    assert all(model.get_parameter(name) is p for name, p in originals.items())
