"""Losses of single samples against those that transformers' own models take of them alone."""

import pytest
import torch
from torch import nn
from trainers import MADE, TOKENS, model_of, rows_of
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    T5ForConditionalGeneration,
    default_data_collator,
)
from transformers.trainer_pt_utils import LabelSmoother

from gradmimic.errors import LossError, UsageError
from gradmimic.integrations.trainer_losses import heeds_items, kind_of, sample_losses

TINY = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PADDED = {"num_key_value_heads": 1, "intermediate_size": 20, "pad_token_id": 0, "num_labels": 3}
MADE_HERE = {
    "llama classes": lambda: LlamaForSequenceClassification(LlamaConfig(**TINY, **PADDED)),
}
ROWS = {"llama classes": "classes"}


def case(kind):
    torch.manual_seed(2)
    model = MADE_HERE[kind]() if kind in MADE_HERE else model_of(kind)
    batch = default_data_collator(rows_of(ROWS.get(kind, kind), 5))
    return model.eval(), batch


def heeding(model, batch):
    """Whether its loss is another one where there are more items: causal models' and ViT's are."""
    if isinstance(model, T5ForConditionalGeneration):  # does not take their number
        return False
    asked = model(**batch, num_items_in_batch=torch.tensor(60)).loss
    return not torch.isclose(asked, model(**batch).loss)


@pytest.mark.parametrize("kind", [*MADE, *MADE_HERE])
def test_a_samples_loss_is_what_its_model_says_of_it_alone(kind):
    model, batch = case(kind)
    found = sample_losses(model, model(**batch), batch["labels"])
    assert found.losses.shape == found.counts.shape == (5,)
    for i in range(5):
        row = {name: values[i : i + 1] for name, values in batch.items()}
        torch.testing.assert_close(found.losses[i], model(**row).loss, rtol=1e-5, atol=1e-6)
    words = ROWS.get(kind, kind) in TOKENS
    counts = (batch["labels"] != -100).sum(1) if words else torch.ones(5)
    assert found.counts.tolist() == counts.tolist()


@pytest.mark.parametrize("kind", [*MADE, *MADE_HERE])
def test_shares_make_the_models_own_loss(kind):
    model, batch = case(kind)
    found = sample_losses(model, model(**batch), batch["labels"])
    own = (found.shares() * found.losses).sum()
    torch.testing.assert_close(own, model(**batch).loss, rtol=1e-5, atol=1e-6)
    over = found.shares(torch.tensor(60)) * found.losses
    if heeding(model, batch):
        asked = model(**batch, num_items_in_batch=torch.tensor(60)).loss
        torch.testing.assert_close(over.sum(), asked, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in MADE if kind not in ("several", "regression")])
def test_smoothed_losses_are_the_trainers(kind):
    model, batch = case(kind)
    out, labels = model(**batch), batch["labels"]
    found = sample_losses(model, out, labels, label_smoothing=0.1)
    smoother = LabelSmoother(0.1)
    causal = kind in ("gpt2", "llama")
    for items in (None, 60):
        expected = smoother(out, labels, shift_labels=causal, num_items_in_batch=items)
        whole = (found.shares(items) * found.losses).sum()
        torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [*MADE, *MADE_HERE])
def test_a_model_is_asked_over_what_its_own_loss_is(kind):
    model, batch = case(kind)
    expected = heeding(model, batch)
    assert expected or kind not in ("llama", "gpt2")
    model.train()
    before = torch.get_rng_state()
    takes = kind != "t5"
    assert heeds_items(model, batch, takes=takes) == expected
    assert heeds_items(model, batch, takes=False) is False
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.grad is None for p in model.parameters())


def test_models_that_return_tuples_are_asked_too():
    model, batch = case("classes")
    model.config.return_dict = False
    assert heeds_items(model, batch, takes=True) is False
    out = model(input_ids=batch["input_ids"])
    assert isinstance(out, tuple)
    assert sample_losses(model, out, batch["labels"]).losses.shape == (5,)


def test_half_precision_is_forgiven_its_rounding():
    model, batch = case("classes")
    assert heeds_items(model.bfloat16(), batch, takes=True) is False


def test_a_batch_without_labels_tells_nothing_of_the_model():
    model, batch = case("llama")
    batch["labels"][:] = -100
    assert heeds_items(model, batch, takes=True) is None
    found = sample_losses(model, model(input_ids=batch["input_ids"]), batch["labels"])
    assert found.losses.tolist() == found.shares().tolist() == [0.0] * 5


def test_losses_of_nothing_tell_nothing_of_the_model():
    model, batch = case("regression")
    torch.nn.init.zeros_(model.classifier.weight), torch.nn.init.zeros_(model.classifier.bias)
    batch["labels"][:] = 0.0
    assert heeds_items(model, batch, takes=True) is None


def test_rows_whose_class_is_masked_count_for_nothing():
    model, batch = case("classes")
    batch["labels"][1] = -100
    found = sample_losses(model, model(**batch), batch["labels"])
    assert found.shares().tolist() == [0.25, 0, 0.25, 0.25, 0.25]
    torch.testing.assert_close((found.shares() * found.losses).sum(), model(**batch).loss)


def test_a_loss_that_is_another_one_is_found_out():
    model, batch = case("classes")

    class Weighted(type(model)):
        def forward(self, **inputs):
            out = super().forward(**inputs)
            out.loss = 2 * out.loss
            return out

    Weighted.__name__ = "WeightedForSequenceClassification"
    model.__class__ = Weighted
    with pytest.raises(UsageError, match=r"on the first batch it says .*Pass compute_loss_func="):
        heeds_items(model, batch, takes=True)


def test_losses_of_routers_are_refused():
    experts = {"num_local_experts": 2, "num_key_value_heads": 1, "intermediate_size": 20}
    model = MixtralForCausalLM(MixtralConfig(**TINY, **experts, output_router_logits=True))
    with pytest.raises(UsageError, match="output_router_logits = False"):
        kind_of(model)
    model.config.output_router_logits = False
    assert kind_of(model) == "shifted"


def test_what_does_not_fit():
    model, batch = case("classes")
    out = model(input_ids=batch["input_ids"])
    with pytest.raises(LossError, match="There are no labels"):
        sample_losses(model, out, None)
    with pytest.raises(LossError, match="There are no logits"):
        sample_losses(model, {"last_hidden_state": out.logits}, batch["labels"])
    with pytest.raises(LossError, match=r"one label per sample, got \[5, 3\] and \[4\]"):
        sample_losses(model, out, batch["labels"][:4])
    model.config.problem_type = "regression"
    with pytest.raises(LossError, match=r"as many labels as logits .*'regression', got \[5\]"):
        sample_losses(model, out, batch["labels"])
    with pytest.raises(UsageError, match="of single samples of a Linear; known are models whose"):
        kind_of(nn.Linear(1, 1))
