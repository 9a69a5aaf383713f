"""Scores of decoders on instructions are the oracle's: Llama, GPT-2, padding, masked prompts."""

import pytest
import torch
from tiny_decoders import batch_of, decoder, losses_of, samples, tokens_of
from torch.nn import functional as F

from gradmimic import mimic_scores
from gradmimic.direction import choose, direction
from gradmimic.engines import pick_engine
from gradmimic.errors import UnsupportedOperationError
from gradmimic.reference import load_reference
from gradmimic.score import projection

KINDS = ("llama", "gpt2")
ENGINES = ("forward", "ghost", "secant")
EXACT = {"rtol": 1e-8, "atol": 1e-10}
SINGLE = {"rtol": 1e-5, "atol": 1e-6}


def near(model, engine=""):
    """Say how near is right: a Llama rounds its norms to single precision whatever it holds."""
    if engine == "secant":
        single = model.dtype == torch.float32
        return {"rtol": 1e-2, "atol": 3e-3} if single else {"rtol": 1e-4, "atol": 1e-6}
    return EXACT if model.config.model_type == "gpt2" else SINGLE


def engines(model):
    """Name the engines to try: no difference shows through rounding a billion times its size."""
    mixed = model.config.model_type == "llama" and model.dtype == torch.float64
    return [own for own in (*ENGINES, "auto") if not (mixed and own == "secant")]


def both(kind, attention):
    """Build a model and its reference."""
    # an eager Llama in double precision gives NaN where padding is on the left, trained or scored
    dtype = torch.float32 if (kind, attention) == ("llama", "eager") else torch.float64
    return decoder(kind, 0, attention, dtype), decoder(kind, 1, attention, dtype)


def alone(model, reference, rows, params):
    """Score each sample by itself, without any padding, from the definition."""
    subset = choose(model, params)
    v = direction(subset, load_reference(reference).match(model, subset))
    own = []
    for prompt, response in rows:
        logits = model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
        loss = F.cross_entropy(logits, response)
        found = torch.autograd.grad(loss, list(subset.parameters.values()))
        if params == "head" and model.config.tie_word_embeddings:  # the head's use of it alone
            hidden = model.base_model(torch.cat([prompt, response])[None]).last_hidden_state
            weight = model.lm_head.weight.detach().clone().requires_grad_()
            again = hidden[0, len(prompt) - 1 : -1].detach() @ weight.T
            found = torch.autograd.grad(F.cross_entropy(again, response), [weight])
        slope = sum((g * d).sum() for g, d in zip(found, v.tensors.values(), strict=True))
        own.append(-slope / v.norm)
    return torch.stack(own)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("params", ["head", "all"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_scores_as_the_oracle_and_as_the_definition(kind, attention, params, side):
    model, reference = both(kind, attention)
    rows = samples()
    batch = batch_of(rows, side)
    exact = mimic_scores(model, reference, batch, losses_of, params=params, engine="oracle")
    torch.testing.assert_close(exact, alone(model, reference, rows, params), **near(model))
    for engine in engines(model):
        found = mimic_scores(model, reference, batch, losses_of, params=params, engine=engine)
        torch.testing.assert_close(found, exact, **near(model, engine))


@pytest.mark.parametrize("params", ["head", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_neither_padding_nor_company_matters(kind, params):
    model, reference = decoder(kind, 0, "sdpa"), decoder(kind, 1, "sdpa")
    rows = samples()

    def scores(*batch, **how):
        made = batch_of(*batch, **how)
        return mimic_scores(model, reference, made, losses_of, params=params, engine="forward")

    expected = scores(rows)
    for how in ({"padding": 7}, {"width": 20}, {"side": "left", "padding": 9, "width": 17}):
        torch.testing.assert_close(scores(rows, **how), expected, **near(model))
    for place, row in enumerate(rows):
        torch.testing.assert_close(scores([row]), expected[place : place + 1], **near(model))
    turned = scores(rows[::-1])
    torch.testing.assert_close(turned.flip(0), expected, **near(model))


@pytest.mark.parametrize("params", ["head", "all"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_tokens_score_is_the_oracles_and_their_mean_the_samples(kind, attention, params):
    model, reference = both(kind, attention)
    batch = batch_of(samples(), "left")
    tried = engines(model)
    if attention == "sdpa":  # its kernel has no second derivative, which ghost takes for tokens
        tried.remove("ghost")
    subset = choose(model, params)
    v = direction(subset, load_reference(reference).match(model, subset))
    by_engine = {}
    for engine in ("oracle", *tried):
        with torch.no_grad(), pick_engine(engine)(subset, v) as single_pass:
            tokens = tokens_of(model, batch)
        each = projection(single_pass.along(tokens.losses), v.norm)  # [b, t]
        whole = projection(single_pass.derivative(tokens.means), v.norm)  # [b]
        single_pass.close()
        assert (each[~tokens.counted] == 0).all()
        torch.testing.assert_close(each.sum(1) / tokens.counts, whole, **near(model))
        by_engine[engine] = each
    for engine in tried:
        found = by_engine[engine]
        torch.testing.assert_close(found, by_engine["oracle"], **near(model, engine))
    assert by_engine["oracle"].std() > 0.01


def test_a_prompt_has_a_part_in_the_score_though_it_has_no_loss():
    model, reference = decoder("llama", 0), decoder("llama", 1)
    rows = samples()
    other = [(prompt.flip(0), response) for prompt, response in rows]
    own, flipped = (
        mimic_scores(model, reference, batch_of(given), losses_of, params="all")
        for given in (rows, other)
    )
    changed = [len(prompt) > 1 for prompt, _ in rows]
    assert ((own - flipped).abs() > 1e-4).tolist() == changed


def test_an_engine_that_cannot_score_tokens_says_which_can():
    model, reference = both("llama", "sdpa")
    subset = choose(model, "all")
    v = direction(subset, load_reference(reference).match(model, subset))
    with pick_engine("ghost")(subset, v) as single_pass:
        tokens = tokens_of(model, batch_of(samples()))
    with pytest.raises(UnsupportedOperationError, match="cannot be differentiated twice.*secant"):
        single_pass.along(tokens.losses)
