"""Tiny Llama and GPT-2 decoders, and batches with padding on either side."""

from typing import NamedTuple

import torch
import transformers
from torch import Tensor

from gradmimic.token_losses import IGNORED, token_losses

VOCABULARY, PAD = 40, 0
LENGTHS = [(2, 5), (4, 3), (1, 1), (3, 7), (6, 2)]  # of prompts and responses


def decoder(kind, seed=0, attention="eager", dtype=torch.float64):
    """Build a decoder of two layers; its weights come from the seed."""
    sizes = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": PAD}
    if kind == "llama":
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=32, **sizes,
        )  # fmt: skip
    else:
        off = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
        config = transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, n_positions=32, **sizes, **off
        )
    torch.manual_seed(seed)
    config._attn_implementation = attention
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    with torch.no_grad():  # fresh ones hardly attend to anything
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.to(dtype).eval()


class Batch(NamedTuple):
    """What a decoder is fed."""

    input_ids: Tensor  # [b, t]
    attention_mask: Tensor  # [b, t]
    labels: Tensor  # [b, t]


def samples(seed=0):
    """Draw prompts and responses."""
    chance = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randint(3, VOCABULARY, (prompt,), generator=chance),
            torch.randint(3, VOCABULARY, (response,), generator=chance),
        )
        for prompt, response in LENGTHS
    ]


def batch_of(rows, side="right", padding=PAD, width=None):
    """Put samples together; nothing but the responses counts."""
    longest = width or max(len(p) + len(r) for p, r in rows)
    made = []
    for prompt, response in rows:
        gap = longest - len(prompt) - len(response)
        pad, off = torch.full((gap,), padding), torch.full((gap,), IGNORED)
        ids, mask = torch.cat([prompt, response]), torch.ones(len(prompt) + len(response)).long()
        labels = torch.cat([torch.full_like(prompt, IGNORED), response])
        parts = [(ids, pad), (mask, torch.zeros(gap).long()), (labels, off)]
        made.append([torch.cat(p if side == "right" else p[::-1]) for p in parts])
    return Batch(*(torch.stack(column) for column in zip(*made, strict=True)))


def tokens_of(model, batch):
    """Return the losses of a batch's tokens."""
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
    output = model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, position_ids=positions
    )
    return token_losses(output.logits, batch.labels, causal=True)


def losses_of(model, batch):
    """Return the mean loss ``[b]`` of each response."""
    return tokens_of(model, batch).means
