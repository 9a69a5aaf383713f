"""LoRA: adapters against adapters and against full fine-tunes, by the weights that they make."""

import copy
import os
import re
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from conftest import ROOT
from torch.nn import functional as F

from gradmimic import GradMimic, check_reference, mimic_scores
from gradmimic.errors import (
    DirectionError,
    LossError,
    ParameterError,
    ReferenceMismatchError,
    UsageError,
)

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from gradmimic.integrations.peft import lora_reference  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
KINDS = ("llama", "gpt2")
TARGETS = {
    "llama": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "mlp.c_proj"],
}


def base_of(kind, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    if kind == "llama":
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=1, vocab_size=30, max_position_embeddings=16,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config).to(dtype)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=30, n_positions=16,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).to(dtype)


def adapted(kind, seed=1, dtype=torch.float64, far=0.3, **settings):
    """Return a model with an adapter that has left its beginning."""
    base = base_of(kind, dtype)
    torch.manual_seed(seed)
    given = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS[kind], **settings}
    given.setdefault("fan_in_fan_out", kind == "gpt2")
    model = peft.get_peft_model(base, peft.LoraConfig(**given), autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(far * torch.randn_like(parameter))
    return model


def tokens(b=5, t=7, seed=3):
    return torch.randint(0, 30, (b, t), generator=torch.Generator().manual_seed(seed))


def losses(model, ids):
    logits = model(input_ids=ids).logits
    each = F.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return each.mean(1)


def changed(kind, seed=7):
    """Return a full fine-tune of the base."""
    full = base_of(kind)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in full.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return full


def merged(model):
    """Return the plain model that an adapted one amounts to, and the names of what it adapts."""
    names = [
        name.removeprefix("base_model.model.") + ".weight"
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and len(module.lora_A)
    ]
    return copy.deepcopy(model).merge_and_unload(), names


def expected(model, reference, ids):
    """One backward pass a sample through the merged model, against the merged reference."""
    plain, names = merged(model)
    target = merged(reference)[0] if isinstance(reference, peft.PeftModel) else reference
    weights = [plain.get_parameter(name).requires_grad_() for name in names]
    v = [(target.get_parameter(n) - w).detach() for n, w in zip(names, weights, strict=True)]
    norm = sum(part.square().sum() for part in v).sqrt()
    each = [torch.autograd.grad(one, weights, retain_graph=True) for one in losses(plain, ids)]
    along = [sum((g * d).sum() for g, d in zip(own, v, strict=True)) for own in each]
    return -torch.stack(along) / norm


def reference_of(kind, what):
    if what == "full":
        return changed(kind)
    if what == "other":  # another rank, scale and choice of layers, from another beginning
        return adapted(kind, seed=9, r=2, lora_alpha=7, target_modules=TARGETS[kind][:1])
    return adapted(kind, seed=8)


def close(found, exact, kind):
    """Compare; Llama's norms round to float32 whatever the model's dtype."""
    rtol = 1e-9 if kind == "gpt2" else 1e-4
    torch.testing.assert_close(found, exact, rtol=rtol, atol=rtol * float(exact.abs().max()))


@pytest.mark.parametrize("engine", ["auto", "forward", "ghost", "oracle"])
@pytest.mark.parametrize("what", ["adapter", "other", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_merged_weights(kind, what, engine):
    model, better = adapted(kind), reference_of(kind, what)
    reference, params = lora_reference(model, better)
    exact = expected(model, better, tokens())
    found = mimic_scores(model, reference, tokens(), losses, params=params, engine=engine)
    close(found, exact, kind)
    mimic = GradMimic(model, reference, params=params, engine=engine)
    with mimic:
        values = losses(model, tokens())
    mimic.weigh(values).backward()
    close(mimic.scores, exact, kind)


def step(model, reference, params, **settings):
    """Weigh one batch and return the scores and the gradients."""
    mimic = GradMimic(model, reference, params=params, **settings)
    model.zero_grad()
    torch.manual_seed(5)  # of dropout
    with mimic:
        values = losses(model, tokens())
    mimic.weigh(values).backward()
    return mimic.scores, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def test_the_step_is_the_weighted_sum_of_per_sample_gradients_of_the_adapter():
    model, better = adapted("gpt2"), adapted("gpt2", seed=8)
    reference, params = lora_reference(model, better)
    _, gradients = step(model, reference, params, temperature=0.02)
    weights = torch.softmax(expected(model, better, tokens()) / 0.02, 0)
    model.zero_grad()
    (weights * losses(model, tokens())).sum().backward()
    trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert gradients.keys() == trained.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, trained[name])


@pytest.mark.parametrize("what", ["weights", "adapter", "full"])
def test_checkpointed_layers_with_dropout_are_scored_as_the_oracle_does(what):
    model = adapted("llama", lora_dropout=0.3).train()
    better = reference_of("llama", "full" if what == "full" else "adapter")
    params = "adapter" if what == "adapter" else "weights"
    reference, params = lora_reference(model, better, params)
    exact, plain = step(model, reference, params, engine="oracle")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.enable_input_require_grads()
    found, gradients = step(model, reference, params)
    close(found, exact, "llama")
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain[name])


@pytest.mark.parametrize("what", ["adapter", "full"])
@pytest.mark.parametrize("how", ["autocast", "bfloat16", "base in bfloat16"])
def test_half_precision_scores_come_near_those_of_double_precision(how, what):
    model, better = adapted("gpt2"), reference_of("gpt2", what)
    exact = expected(model, better, tokens())
    half = torch.float32 if how == "autocast" else torch.bfloat16
    model.to(half), better.to(half)
    if how.startswith("base"):  # as peft does it, unless told otherwise
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.float()
    reference, params = lora_reference(model, better)
    mimic = GradMimic(model, reference, params=params)
    with mimic, torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        values = losses(model, tokens())
    mimic.weigh(values).backward()
    assert float((mimic.scores - exact).norm() / exact.norm()) < 0.05


def test_an_adapter_is_scored_by_its_own_parameters_where_it_began_alike():
    model, better = adapted("gpt2"), adapted("gpt2", seed=8)
    reference, params = lora_reference(model, better, "adapter")
    found = mimic_scores(model, reference, tokens(), losses, params=params)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    v = {n: better.get_parameter(n).detach() - p.detach() for n, p in trained.items()}
    norm = sum(part.square().sum() for part in v.values()).sqrt()
    each = [
        torch.autograd.grad(one, list(trained.values()), retain_graph=True)
        for one in losses(model, tokens())
    ]
    along = [sum((g * d).sum() for g, d in zip(own, v.values(), strict=True)) for own in each]
    torch.testing.assert_close(found, -torch.stack(along) / norm)


def classifier(**settings):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=30, pad_token_id=0, num_labels=3,
    )  # fmt: skip
    model = transformers.LlamaForSequenceClassification(config)
    given = {"task_type": "SEQ_CLS", "target_modules": ["q_proj", "v_proj"], "r": 2, **settings}
    return peft.get_peft_model(model, peft.LoraConfig(**given))


def moved(model, seed=4):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def class_losses(model, ids):
    return F.cross_entropy(model(input_ids=ids).logits, ids[:, 0] % 3, reduction="none")


def test_a_folder_gives_what_the_adapter_in_memory_does(tmp_path):
    model, better = moved(classifier()), moved(classifier(), seed=5)
    better.save_pretrained(tmp_path)
    (tmp_path / "optimizer.pt").write_bytes(b"as a trainer leaves it")
    for params in ("weights", "adapter", "head"):
        scores = [
            mimic_scores(model, target, tokens(), class_losses, params=scored)
            for target, scored in (
                lora_reference(model, source, params)
                for source in (tmp_path, better, peft.get_peft_model_state_dict(better))
            )
        ]
        torch.testing.assert_close(scores[0], scores[1])
        torch.testing.assert_close(scores[0], scores[2])


def test_modules_that_train_in_full_are_scored_with_the_adapted_weights():
    model, better = moved(classifier()), moved(classifier(), seed=5)
    reference, params = lora_reference(model, better)
    found = mimic_scores(model, reference, tokens(), class_losses, params=params)
    plain, target = (copy.deepcopy(one).merge_and_unload() for one in (model, better))
    names = [n for n, _ in plain.named_parameters() if "q_proj" in n or "v_proj" in n] + [
        "score.weight"
    ]
    exact = mimic_scores(plain, target.state_dict(), tokens(), class_losses, params=names)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)
    full, params = lora_reference(model, target.state_dict())
    torch.testing.assert_close(
        mimic_scores(model, full, tokens(), class_losses, params=params),
        exact, rtol=1e-3, atol=1e-5,
    )  # fmt: skip


def test_the_head_is_scored_against_a_full_fine_tune():
    model, better = adapted("llama"), changed("llama")
    reference, params = lora_reference(model, better, "head")
    found = mimic_scores(model, reference, tokens(), losses, params=params)
    plain, _ = merged(model)
    exact = mimic_scores(plain, better, tokens(), losses, params="head")
    torch.testing.assert_close(found, exact)


def test_the_model_never_notices_and_copies_get_nothing(tmp_path):
    model, better = adapted("gpt2"), adapted("gpt2", seed=8)
    before, names = losses(model, tokens()).detach(), list(model.state_dict())
    reference, params = lora_reference(model, better)
    mimic = GradMimic(model, reference, params=params)
    with mimic:
        values = losses(model, tokens())
    assert torch.equal(values, before)
    mimic.weigh(values).backward()
    assert list(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    twin = copy.deepcopy(model).bfloat16()  # zeros beside the original do not fit
    assert losses(twin, tokens()).isfinite().all()
    torch.save(model, tmp_path / "whole.pt")
    layer = next(m for m in model.modules() if hasattr(m, "lora_A"))
    assert len(layer._forward_hooks) == 1
    another = GradMimic(model, reference, params=params)
    with another:
        values = losses(model, tokens())
    another.weigh(values)
    assert len(layer._forward_hooks) == 1  # the last pass's zeros take the place


def test_several_active_adapters_add_up():
    model, better = adapted("llama"), adapted("llama", seed=8)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    model.add_adapter("second", config)
    model.base_model.set_adapter(["default", "second"])
    model.double()
    reference, params = lora_reference(model, better)
    found = mimic_scores(model, reference, tokens(), losses, params=params)
    plain = copy.deepcopy(model).merge_and_unload(adapter_names=["default", "second"])
    target, names = merged(better)
    exact = mimic_scores(plain, target, tokens(), losses, params=names)
    close(found, exact, "llama")


CASES = {
    "another rank": ({"r": 4, "lora_alpha": 20 / 3}, "r 4 in the reference, 3 in the model: "),
    "another scale": ({"lora_alpha": 6}, r"scale alpha/r 2 in the reference, 1\.6\d* in the model"),
    "other layers": ({"target_modules": ["c_attn"]}, r"adapted in the model alone: .*c_proj"),
    "scaled by the root": ({"use_rslora": True}, r"scale alpha/r 2\.8\d* in the reference"),
}


@pytest.mark.parametrize("case", CASES)
def test_adapters_of_another_configuration_are_refused_with_the_differences(case):
    settings, message = CASES[case]
    model, better = adapted("gpt2"), adapted("gpt2", seed=8, **settings)
    with pytest.raises(ReferenceMismatchError, match=message):
        lora_reference(model, better, "adapter")
    reference, params = lora_reference(model, better)
    close(
        mimic_scores(model, reference, tokens(), losses, params=params),
        expected(model, better, tokens()),
        "gpt2",
    )


Cut = namedtuple("Cut", "logits")


def prompted(model, ids):
    return losses(lambda input_ids: Cut(model(input_ids=input_ids).logits[:, -ids.shape[1] :]), ids)


def test_what_cannot_be_scored_says_so_and_what_to_do():
    model = adapted("llama")
    with pytest.raises(ParameterError, match="expects a peft.PeftModel, got LlamaForCausalLM"):
        lora_reference(base_of("llama"), model)
    with pytest.raises(ReferenceMismatchError, match="is no LoRA adapter.*params='weights'"):
        lora_reference(model, changed("llama"), "adapter")
    with pytest.raises(ReferenceMismatchError, match="changes layers that LlamaForCausalLM does"):
        lora_reference(model, adapted("gpt2"))
    with pytest.raises(ParameterError, match="DoraLinearVariant is no product.*params='adapter'"):
        lora_reference(adapted("llama", use_dora=True), model)
    with pytest.raises(ParameterError, match="lora_bias=True"):
        lora_reference(adapted("gpt2", lora_bias=True), adapted("gpt2"))
    with pytest.raises(ParameterError, match="it is Embedding; it expects linear layers"):
        lora_reference(adapted("llama", target_modules=["embed_tokens", "q_proj"]), model)
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(ParameterError, match="with an active LoRA adapter.*PROMPT_TUNING"):
        lora_reference(peft.get_peft_model(base_of("llama"), prompts), model)
    wider = {
        key: value.repeat(1, 2) for key, value in peft.get_peft_model_state_dict(model).items()
    }
    with pytest.raises(ReferenceMismatchError, match="Expected an adapter of the same base"):
        lora_reference(model, wider)
    reference, params = lora_reference(model, adapted("llama", seed=8))
    with pytest.raises(ReferenceMismatchError, match="params that lora_reference returned"):
        GradMimic(model, reference)
    with pytest.raises(ParameterError, match="made for another model than this"):
        GradMimic(adapted("llama"), reference, params=params)
    with pytest.raises(ParameterError, match="reweight='scored' steps on the scored parameters"):
        GradMimic(model, reference, params=params, reweight="scored")
    mimic = GradMimic(model, reference, params=params)
    model.float()
    with pytest.raises(UsageError, match="is torch.float32 on cpu, and was torch.float64 on cpu"):
        mimic.__enter__()
    model.merge_adapter()
    with pytest.raises(ParameterError, match=r"merged into the weight. Call model.unmerge_adapter"):
        lora_reference(model, reference_of("llama", "adapter"))


def test_a_copy_of_the_model_has_no_direction():
    model = adapted("llama", dtype=torch.float32)
    for better in (copy.deepcopy(model), merged(model)[0]):
        reference, params = lora_reference(model, better)
        with pytest.raises(DirectionError, match="the reference's weights equal the current ones"):
            mimic_scores(model, reference, tokens(), losses, params=params)


def test_an_adapter_without_its_configuration_is_refused(tmp_path):
    adapted("llama").save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(ReferenceMismatchError, match="no readable adapter_config.json"):
        lora_reference(adapted("llama"), tmp_path)
    with pytest.raises(LossError, match="cosine"):
        model = adapted("llama")
        reference, params = lora_reference(model, adapted("llama", seed=8))
        mimic_scores(model, reference, tokens(), losses, params=params, variant="cosine")


@pytest.mark.slow
def test_the_example_finds_the_wrong_labels():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "examples" / "lora.py"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = dict(re.findall(r"(plain|re-weighted|labels) (\d\.\d+)", done.stdout))
    assert float(found["re-weighted"]) > float(found["plain"]) + 0.1
    assert float(found["labels"]) > 0.9


def test_a_check_goes_all_the_way_to_the_reference():
    model, better = moved(classifier()), moved(classifier(), seed=5)
    reference, params = lora_reference(model, better)
    ids = tokens(20)
    found = check_reference(
        model, reference, [torch.arange(20)], lambda m, rows: class_losses(m, ids[rows]),
        params=params, align="none",
    )  # fmt: skip
    check = found.alignments["none"]
    assert (check.cosine, check.distance) == (None, None)
    ends = [float(class_losses(one, ids).detach().mean()) for one in (model, better)]
    assert [check.losses[0], check.losses[-1]] == pytest.approx(ends, rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*use_reentrant.*:UserWarning")
def test_a_trainer_with_checkpointing_and_bfloat16_steps_as_the_plain_one(tmp_path):
    trainers = pytest.importorskip("trainers")

    def fresh(seed):
        base = trainers.model_of("llama")
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=3, target_modules=["q_proj", "down_proj"], lora_dropout=0.1)
        return moved(peft.get_peft_model(base, config), seed)

    fresh(6).save_pretrained(tmp_path / "better")

    def trained(kind, **more):
        model = fresh(1)
        args = trainers.arguments(
            tmp_path, gradient_checkpointing=True, bf16=True, gradient_accumulation_steps=2,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )  # fmt: skip
        trainer = kind(model=model, args=args, train_dataset=trainers.data_of("llama"), **more)
        trainer.train()
        return {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, trainer

    plain, _ = trained(transformers.Trainer)
    more = {"reference": tmp_path / "better", "temperature": float("inf")}
    same, trainer = trained(trainers.MimicTrainer, **more)
    torch.testing.assert_close(same, plain, rtol=0.02, atol=1e-4)  # bfloat16 rounds sums otherwise
    assert all(told["scores"].isfinite().all() for told in trainer.told)
    assert all(told["scores"].std() > 0 for told in trainer.told if len(told["ids"]) > 1)


class Rounded(torch.nn.Module):
    """A linear layer whose weight is kept in 8 bits, as quantizers do."""

    def __init__(self, layer):
        super().__init__()
        self.scale = layer.weight.detach().abs().max() / 127
        rounded = (layer.weight.detach() / self.scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(rounded, requires_grad=False)

    def forward(self, x):
        return F.linear(x, self.weight.to(x.dtype) * self.scale)


def test_a_quantized_base_is_scored_as_what_it_stands_for():
    model, better = adapted("llama"), adapted("llama", seed=8)
    full = changed("llama")
    for each in (model, better):
        for layer in [m for m in each.modules() if hasattr(m, "lora_A")]:
            layer.base_layer = Rounded(layer.base_layer)
    plain, target = copy.deepcopy(model), copy.deepcopy(better)
    for each in (plain, target):
        for layer in [m for m in each.modules() if hasattr(m, "lora_A")]:
            held = layer.base_layer
            layer.base_layer = torch.nn.Linear(1, 1, bias=False)
            layer.base_layer.weight = torch.nn.Parameter(held.weight.double() * held.scale)
    reference, params = lora_reference(model, better)
    found = mimic_scores(model, reference, tokens(), losses, params=params, engine="ghost")
    close(found, expected(plain, target, tokens()), "llama")
    with pytest.raises(ParameterError, match=r"quantized \(torch.int8\), so a full fine-tune has"):
        lora_reference(model, full)
