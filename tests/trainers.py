"""Tiny models of Hugging Face's, data for them, and a mimicking Trainer that tells what it saw."""

import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from gradmimic.integrations.huggingface import MimicMixin

WORDS, LONGEST, ROWS = 40, 9, 14
BERT = {
    "vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 20, "max_position_embeddings": 16, "num_labels": 3,
}  # fmt: skip
LLAMA = {
    "vocab_size": WORDS, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 20, "max_position_embeddings": 16,
}  # fmt: skip
GPT2 = {"vocab_size": WORDS, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16}
T5 = {
    "vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 20, "num_layers": 1, "num_heads": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip
VIT = {
    "image_size": 8, "patch_size": 4, "hidden_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 20, "num_labels": 3,
}  # fmt: skip

MADE = {
    "classes": lambda **own: BertForSequenceClassification(BertConfig(**{**BERT, **own})),
    "several": lambda **own: BertForSequenceClassification(
        BertConfig(**{**BERT, "problem_type": "multi_label_classification", **own})
    ),
    "regression": lambda **own: BertForSequenceClassification(
        BertConfig(**{**BERT, "num_labels": 1, **own})
    ),
    "images": lambda **own: ViTForImageClassification(ViTConfig(**{**VIT, **own})),
    "tags": lambda **own: BertForTokenClassification(BertConfig(**{**BERT, **own})),
    "masked": lambda **own: BertForMaskedLM(BertConfig(**{**BERT, **own})),
    "gpt2": lambda **own: GPT2LMHeadModel(GPT2Config(**{**GPT2, **own})),
    "llama": lambda **own: LlamaForCausalLM(LlamaConfig(**{**LLAMA, **own})),
    "t5": lambda **own: T5ForConditionalGeneration(T5Config(**{**T5, **own})),
}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
STILL_GPT2 = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
TOKENS = ("tags", "masked", "gpt2", "llama", "t5")


def model_of(kind, *, still=False, seed=1, **own):
    """A fresh model; ``still``: without dropout, in double precision."""
    torch.manual_seed(seed)
    if not still:
        return MADE[kind](**own)
    off = {"gpt2": STILL_GPT2, "llama": {}, "t5": {"dropout_rate": 0.0}}.get(kind, STILL)
    return MADE[kind](**off, **own).double()


def better_than(model, far=0.2):
    """A state dict some way off."""
    chance = torch.Generator().manual_seed(7)
    return {
        name: p.detach() + far * torch.randn(p.shape, generator=chance).to(p)
        for name, p in model.named_parameters()
    }


def rows_of(kind, rows=ROWS):
    """Rows of unequal lengths, padded; some tokens have no label."""
    chance = torch.Generator().manual_seed(5)

    def below(most, *shape):
        return torch.randint(most, shape, generator=chance)

    found = []
    for i in range(rows):
        if kind == "images":
            pixels = torch.randn(3, 8, 8, generator=chance)
            found.append({"pixel_values": pixels.tolist(), "labels": i % 3})
            continue
        n = 3 + int(below(LONGEST - 2, 1))
        words, padding = (3 + below(WORDS - 3, n)).tolist(), LONGEST - n
        labels = {
            "classes": i % 3, "several": below(2, 3).float().tolist(), "regression": i / ROWS,
            "tags": [word % 3 for word in words], "masked": list(words), "gpt2": list(words),
            "llama": list(words), "t5": list(words),
        }[kind]  # fmt: skip
        if kind in TOKENS:
            labels[0] = -100
            labels += [-100] * padding
        found.append({
            "input_ids": words + [0] * padding,
            "attention_mask": [1] * n + [0] * padding,
            "labels": labels,
        })  # fmt: skip
    return found


def data_of(kind, rows=ROWS):
    return Dataset.from_list(rows_of(kind, rows))


def arguments(folder, **own):
    options = {
        "per_device_train_batch_size": 2, "num_train_epochs": 1, "learning_rate": 0.05,
        "optim": "sgd", "max_grad_norm": 0.0, "lr_scheduler_type": "constant", "report_to": "none",
        "save_strategy": "no", "use_cpu": True, "disable_tqdm": True, "log_level": "error",
        "logging_steps": 1, "seed": 3, "dataloader_pin_memory": False,
    }  # fmt: skip
    return TrainingArguments(str(folder), **{**options, **own})


class MimicTrainer(MimicMixin, Trainer):
    """Tells what it saw of every micro-batch."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.told = []

    def compute_loss(self, model, inputs, *args, **options):
        ids = inputs.get("sample_id")
        loss = super().compute_loss(model, inputs, *args, **options)
        if ids is not None:
            told = {"ids": ids, "scores": self.mimic.scores, "weights": self.mimic.weights}
            self.told.append({**told, "epoch": self.state.epoch})
        return loss


def losses_logged(trainer):
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]
