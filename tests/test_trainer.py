"""The mimicking Trainer against the plain one, and against one backward pass a sample."""

import math
import runpy

import pytest
import torch
from conftest import ROOT
from torch.nn import functional as F
from trainers import (
    BERT,
    MADE,
    TOKENS,
    MimicTrainer,
    arguments,
    better_than,
    data_of,
    losses_logged,
    model_of,
    rows_of,
)
from transformers import (
    BertConfig,
    BertForNextSentencePrediction,
    Trainer,
    default_data_collator,
)

from gradmimic.errors import LossError, UsageError
from gradmimic.integrations.huggingface import MimicMixin, mimic_trainer

KINDS = list(MADE)
SMOOTHED = ("images", "tags", "masked", "gpt2")


def weights_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def trained(kind, args, **options):
    model = model_of(kind)
    common = {"model": model, "args": args, "train_dataset": data_of(kind)}
    if options:
        trainer = MimicTrainer(**common, reference=better_than(model), **options)
    else:
        trainer = Trainer(**common)
    trainer.train()
    return losses_logged(trainer), weights_of(model), trainer


@pytest.mark.parametrize(
    ("kind", "accumulate", "smoothing"),
    [("classes", 3, 0.1), ("llama", 3, 0.0)]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            *((kind, 3, 0.0) for kind in KINDS if kind != "llama"),
            *((kind, 1, 0.0) for kind in ("classes", "llama")),
            *((kind, 3, 0.1) for kind in ("llama", *SMOOTHED)),
        )
    ],
)
def test_an_infinite_temperature_trains_as_the_plain_trainer(kind, accumulate, smoothing, tmp_path):
    """Seven micro-batches of two, with dropout: by threes the last step has one alone."""
    own = {"gradient_accumulation_steps": accumulate, "label_smoothing_factor": smoothing}
    args = arguments(tmp_path, **own)
    plain, expected, _ = trained(kind, args)
    found, weights, trainer = trained(kind, args, temperature=math.inf)
    assert len(trainer.told) == 7
    assert plain == pytest.approx(found, rel=1e-5)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)


def collated_with(more):
    return lambda rows: {**default_data_collator(rows), **more}


def alone(model, kind, row):
    """The gradients of one sample's own loss, as the model itself takes it of the row unpadded."""
    words = sum(row.get("attention_mask", [1]))
    cut = {
        name: value[:words]
        for name, value in row.items()
        if name in ("input_ids", "attention_mask")
    }
    labels = row["labels"][:words] if kind in TOKENS else row["labels"]
    if kind == "images":
        cut = {"pixel_values": row["pixel_values"]}
    inputs = {name: torch.tensor([value]) for name, value in {**cut, "labels": labels}.items()}
    doubles = {name: x.double() if x.is_floating_point() else x for name, x in inputs.items()}
    model.zero_grad()
    model(**doubles).loss.backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in model.named_parameters()}  # fmt: skip


def independently(model, kind, told, accumulate, scored, temperature, lr=0.05):
    """Train by one backward pass a sample."""
    rows = rows_of(kind)
    reference, parameters = better_than(model), dict(model.named_parameters())
    scored = [name for name in parameters if scored(name)]
    terms = [sum(label != -100 for label in row["labels"]) if kind in TOKENS else 1 for row in rows]
    scores = []
    for first in range(0, len(told), accumulate):
        step = [micro["ids"].tolist() for micro in told[first : first + accumulate]]
        update = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for ids in step:
            own = [alone(model, kind, rows[i]) for i in ids]
            v = {name: reference[name] - parameters[name].detach() for name in scored}
            norm = sum(part.square().sum() for part in v.values()).sqrt()
            m = torch.stack([-sum((g[n] * v[n]).sum() for n in scored) / norm for g in own])
            w = torch.softmax(m / temperature, 0)
            scores.append(m)
            whole = (
                [i for micro in step for i in micro] if kind in ("gpt2", "llama", "images") else ids
            )
            over = sum(terms[i] for i in whole)
            for i, weight, g in zip(ids, w, own, strict=True):
                for name in update:
                    update[name] += len(ids) * weight * terms[i] / over * g[name]
        with torch.no_grad():
            for name, p in parameters.items():
                p -= lr * update[name]
    return scores, weights_of(model)


HEADS = {
    "masked": "cls.predictions.decoder",
    "gpt2": "lm_head",
    "llama": "lm_head",
}


@pytest.mark.parametrize(
    ("kind", "params"),
    [("classes", "head"), ("gpt2", "head"), ("llama", "all")]
    + [
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            *(
                (kind, "head") for kind in KINDS if kind not in ("t5", "classes", "gpt2")
            ),  # t5: tied
            *((kind, "all") for kind in ("masked", "gpt2", "t5", "images")),
        )
    ],
)
def test_a_training_is_that_of_weighted_gradients_of_single_samples(kind, params, tmp_path):
    """Scores of every micro-batch, and the weights after the last, in double precision."""
    untied = {"tie_word_embeddings": False} if params == "head" and kind in TOKENS else {}
    model, again = (model_of(kind, still=True, **untied) for _ in range(2))
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    more = {"params": params, "temperature": 0.05}
    trainer = MimicTrainer(
        model=model, args=args, train_dataset=data_of(kind), reference=better_than(model), **more
    )
    trainer.train()
    head = HEADS.get(kind, "classifier")
    scored = lambda name: params == "all" or name.startswith(head)
    scores, weights = independently(again, kind, trainer.told, 2, scored, 0.05)
    assert len(scores) == 7
    for found, expected in zip(trainer.told, scores, strict=True):
        torch.testing.assert_close(found["scores"], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights_of(model), weights, rtol=1e-5, atol=1e-6)


def test_default_attention_is_sdpa_and_needs_no_change():
    """What the trainings above with params='all' went through."""
    assert {model_of(kind).config._attn_implementation for kind in KINDS} == {"sdpa"}


@pytest.mark.parametrize("params", ["head", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("own", [{"bf16": True}, {"activation_checkpointing": True}], ids=str)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_mixed_precision_and_checkpointing_change_nothing_but_rounding(own, params, tmp_path):
    found = {}
    for name, more in (("plainly", {}), ("so", own)):
        args = arguments(tmp_path, num_train_epochs=1, learning_rate=0.01, **more)
        _, weights, trainer = trained("llama", args, params=params)
        found[name] = torch.cat([told["scores"] for told in trainer.told]), weights
    rounding = 0.05 if "bf16" in own else 1e-5
    (exact, weights), (scores, others) = found["plainly"], found["so"]
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, exact, rtol=rounding, atol=rounding * exact.std().item())
    torch.testing.assert_close(others, weights, rtol=rounding, atol=rounding * 0.02)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_is_scored_alike(tmp_path):
    more = {"torch_compile": True, "torch_compile_backend": "aot_eager"}
    found = []
    for own in ({}, more):
        _, _, trainer = trained("llama", arguments(tmp_path, max_steps=3, **own), temperature=0.1)
        found.append([told["scores"] for told in trainer.told])
    assert type(trainer.model_wrapped).__name__ == "OptimizedModule"
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_evaluation_and_prediction_are_the_plain_trainers(tmp_path):
    args = arguments(tmp_path, eval_strategy="epoch", num_train_epochs=2)
    told = []
    for kind in (Trainer, MimicTrainer):
        model = model_of("classes")
        more = {"reference": better_than(model), "temperature": math.inf}
        trainer = kind(
            model=model, args=args, train_dataset=data_of("classes"),
            eval_dataset=data_of("classes", 5), **(more if kind is MimicTrainer else {}),
        )  # fmt: skip
        trainer.train()
        losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
        said = trainer.predict(data_of("classes", 5))
        told.append((losses, trainer.evaluate()["eval_loss"], said.predictions, said.label_ids))
        assert trainer.compute_loss_func is None
    for plain, found in zip(*told, strict=True):
        torch.testing.assert_close(torch.tensor(found), torch.tensor(plain), rtol=1e-5, atol=1e-6)


def test_a_trainer_that_is_there_already_is_turned_into_a_mimicking_one(tmp_path):
    model = model_of("classes")
    own = Trainer(model=model, args=arguments(tmp_path), train_dataset=data_of("classes"))
    trainer = mimic_trainer(own, better_than(model), temperature=0.1, score_log=tmp_path / "log")
    assert trainer is own
    assert isinstance(trainer, Trainer)
    assert type(trainer).__name__ == "MimicTrainer"
    trainer.train()
    _, _, other = trained("classes", arguments(tmp_path), temperature=0.1)
    torch.testing.assert_close(trainer.mimic.scores, other.mimic.scores)
    rows = trainer.score_log.scan()
    assert sorted(rows["sample_id"].to_pylist()) == list(range(14))
    again = mimic_trainer(trainer, better_than(model), temperature=0.2)
    assert type(again).__mro__.count(MimicMixin) == 1
    with pytest.raises(UsageError, match="temprature is none of params, temperature"):
        mimic_trainer(trainer, better_than(model), temprature=0.2)


def test_a_second_training_begins_anew_and_epochs_are_logged(tmp_path):
    made = []

    def fresh():
        made.append(model_of("classes"))
        return made[-1]

    args = arguments(tmp_path, num_train_epochs=2, per_device_train_batch_size=7)
    trainer = MimicTrainer(
        model_init=fresh, args=args, train_dataset=data_of("classes"),
        reference=better_than(fresh()), score_log=tmp_path / "log",
    )  # fmt: skip
    trainer.train()
    first, told = weights_of(trainer.model), trainer.told
    rows = trainer.score_log.scan()
    assert rows["epoch"].to_pylist() == [0] * 14 + [1] * 14
    assert rows["step"].to_pylist() == [0] * 7 + [1] * 7 + [2] * 7 + [3] * 7
    trainer.told, trainer._mimicking.log = [], None
    trainer.train()
    torch.testing.assert_close(weights_of(trainer.model), first)
    for mine, other in zip(trainer.told, told, strict=True):
        torch.testing.assert_close(mine["scores"], other["scores"])


def losses_of_own(outputs, labels, num_items_in_batch=None):
    return F.cross_entropy(
        outputs.logits, labels, reduction="none", weight=torch.tensor([1.0, 2, 3])
    )


@pytest.mark.parametrize("accumulate", [1, 3])
def test_losses_of_ones_own_are_weighed_in_the_place_of_their_mean(accumulate, tmp_path):
    args = arguments(tmp_path, gradient_accumulation_steps=accumulate)
    model, plain = model_of("classes"), model_of("classes")
    common = {"args": args, "train_dataset": data_of("classes")}
    MimicTrainer(
        model=model, reference=better_than(model), temperature=math.inf,
        compute_loss_func=losses_of_own, **common,
    ).train()  # fmt: skip

    class Mean(Trainer):
        def compute_loss_func_mean(self, outputs, labels, num_items_in_batch=None):
            return losses_of_own(outputs, labels).mean() / self.current_gradient_accumulation_steps

    trainer = Mean(model=plain, **common)
    trainer.compute_loss_func = trainer.compute_loss_func_mean
    trainer.train()
    torch.testing.assert_close(weights_of(model), weights_of(plain), rtol=1e-5, atol=1e-7)


class OwnLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs).loss


class MimicOwnLoss(MimicMixin, OwnLoss):
    pass


def test_losses_of_whole_batches_are_refused(tmp_path):
    model = model_of("classes")
    common = {
        "model": model, "args": arguments(tmp_path), "train_dataset": data_of("classes"),
        "reference": better_than(model),
    }  # fmt: skip
    with pytest.raises(
        UsageError, match=r"MimicOwnLoss.compute_loss takes a loss of its own.*\[b\]"
    ):
        MimicOwnLoss(**common).train()
    trainer = MimicTrainer(**common, compute_loss_func=lambda *a, **k: losses_of_own(*a).mean())
    with pytest.raises(
        LossError, match=r"returned \[\], and there are 2 samples.*reduction='none'"
    ):
        trainer.train()
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    "more",
    [
        {"cu_seq_lens_q": torch.tensor([0, 3, 9])},
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4, 5]] * 2)},
        {"seq_idx": torch.zeros(2, 9)},
    ],
    ids=lambda more: next(iter(more)),
)
def test_packed_batches_are_refused(more, tmp_path):
    model = model_of("llama")
    trainer = MimicTrainer(
        model=model, args=arguments(tmp_path), train_dataset=data_of("llama"),
        reference=better_than(model), data_collator=collated_with(more),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"The batch is packed, it holds .*packing=False"):
        trainer.train()


@pytest.mark.parametrize("places", [[0, 1, 2, 3, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 2, 3, 4, 5]])
def test_places_of_padded_rows_are_not_taken_for_packed_ones(places, tmp_path):
    model = model_of("llama")
    more = {"position_ids": torch.tensor([places] * 2)}
    MimicTrainer(
        model=model, args=arguments(tmp_path, max_steps=1), train_dataset=data_of("llama"),
        reference=better_than(model), data_collator=collated_with(more),
    ).train()  # fmt: skip


def test_what_cannot_be_weighed_is_refused_before_the_first_step(tmp_path):
    def refusal(model, **own):
        args = arguments(tmp_path)
        for name, value in own.items():
            setattr(args, name, value)
        common = {"model": model, "args": args, "train_dataset": data_of("classes")}
        with pytest.raises(UsageError) as caught:
            MimicTrainer(**common, reference=better_than(model)).train()
        return str(caught.value)

    assert "packing=False" in refusal(model_of("llama"), packing=True)
    assert "padding_free=False" in refusal(model_of("llama"), padding_free=True)
    assert "loss_type='dft'" in refusal(model_of("llama"), loss_type="dft")
    assert "torchrun" in refusal(model_of("classes"), _n_gpu=2)
    other = BertForNextSentencePrediction(BertConfig(**BERT))
    assert "Nothing is known of the loss of single samples of a BertForNext" in refusal(other)
    assert "compute_loss_func=" in refusal(other)


@pytest.mark.slow
def test_the_example_runs(tmp_path, capsys):
    example = runpy.run_path(str(ROOT / "examples" / "hf_trainer.py"))
    example["main"](tmp_path, epochs=1)
    said = capsys.readouterr().out
    assert said.count("accuracy") == 4
    assert said.count("AUROC of the wrong labels 0.") == 2


def adapted(tmp_path, mimicking, **options):
    """Train LoRA on a tiny Llama, with dropout; its reference is a full model."""
    peft = pytest.importorskip("peft")
    model, full = model_of("llama"), better_than(model_of("llama"))
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM"
    )
    torch.manual_seed(4)
    model = peft.get_peft_model(model, config)
    args = arguments(tmp_path, gradient_accumulation_steps=3, learning_rate=0.5)
    common = {"model": model, "args": args, "train_dataset": data_of("llama")}
    trainer = MimicTrainer(**common, reference=full, **options) if mimicking else Trainer(**common)
    trainer.train()
    return weights_of(model), trainer


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_lora_trains_as_plain_at_an_infinite_temperature_and_else_not(tmp_path):
    plain, _ = adapted(tmp_path, False)
    same, _ = adapted(tmp_path, True, temperature=math.inf)
    torch.testing.assert_close(same, plain, rtol=1e-5, atol=1e-7)
    other, trainer = adapted(tmp_path, True, temperature=0.01)
    name = next(name for name in plain if "lora_B" in name)
    assert (other[name] - plain[name]).abs().max() > 1e-4
    assert all(told["scores"].std() > 0 for told in trainer.told[:-1])
