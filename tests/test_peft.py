"""LoRA: adapters against adapters and against full fine-tunes, by the weights that they make."""

import copy

import pytest
import torch
from torch.nn import functional as F

from gradmimic import GradMimic, check_reference, load_reference, mimic_scores
from gradmimic.errors import ParameterError, ReferenceMismatchError, UsageError

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

from gradmimic.integrations.peft import lora_reference  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
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
