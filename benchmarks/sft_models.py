"""A tiny Llama from scratch, its training with early stopping, and its losses."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from sft_data import BEGIN, END, PAD, Row, batch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from gradmimic import mimic_scores
from gradmimic.token_losses import IGNORED, token_losses


def tiny(vocabulary: int, width: int, layers: int, seed: int) -> LlamaForCausalLM:
    """Build one with weights from the seed."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=3 * width,
            num_hidden_layers=layers, num_attention_heads=width // 32, max_position_embeddings=256,
            bos_token_id=BEGIN, eos_token_id=END, pad_token_id=PAD, tie_word_embeddings=False,
            use_cache=False,
        )
    )  # fmt: skip


def losses(model: nn.Module, given: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return ``[b]``, the mean loss of each sequence's tokens that count."""
    ids, mask, labels = given
    logits = model(input_ids=ids, attention_mask=mask).logits
    return token_losses(logits, labels, causal=True).means


def batches(rows: Sequence[Row], size: int, order: Sequence[int] | None = None) -> Iterator[Any]:
    """Yield places, and the batch; without an order the shortest come first."""
    if order is None:
        order = sorted(range(len(rows)), key=lambda row: len(rows[row][0]))
    for start in range(0, len(order), size):
        places = list(order[start : start + size])
        yield places, batch([rows[place] for place in places])


@torch.no_grad()
def all_losses(model: nn.Module, rows: Sequence[Row]) -> Tensor:
    """Return ``[n]``."""
    model.eval()
    found = torch.empty(len(rows))
    for places, given in batches(rows, 64):
        found[places] = losses(model, given)
    return found


def all_scores(model: nn.Module, reference: nn.Module, rows: Sequence[Row], params: str) -> Tensor:
    """Return the mimic scores ``[n]``."""
    found = torch.empty(len(rows))
    for places, given in batches(rows, 16):
        found[places] = mimic_scores(model, reference, given, losses, params=params)
    return found


@torch.no_grad()
def halfway(model: nn.Module, reference: nn.Module) -> nn.Module:
    """Return a model between the two."""
    between = copy.deepcopy(model)
    for own, better in zip(between.parameters(), reference.parameters(), strict=True):
        own.lerp_(better, 0.5)
    return between


def train(
    model: LlamaForCausalLM, rows: Sequence[Row], held_out: Sequence[Row], *, epochs: int,
    rate: float, seed: int, size: int = 16, hidden: float = 0.0,
) -> LlamaForCausalLM:  # fmt: skip
    """Train a copy, and return it as it was at the epoch of the lowest held-out loss.

    Of what counts a share is hidden from what comes after, which must then look further back.
    """
    model = copy.deepcopy(model)
    chance = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(rows) // size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.1, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.1)
    best, kept = float("inf"), copy.deepcopy(model.state_dict())
    for _ in range(epochs):
        model.train()
        order = torch.randperm(len(rows), generator=chance).tolist()
        # of like lengths within a few batches: less padding
        spans = [order[at : at + 8 * size] for at in range(0, len(order), 8 * size)]
        order = [row for span in spans for row in sorted(span, key=lambda row: len(rows[row][0]))]
        for _, given in batches(rows, size, order):
            ids, mask, labels = given
            if hidden:
                gone = (torch.rand(ids.shape, generator=chance) < hidden) & (labels != IGNORED)
                ids = ids.masked_fill(gone, PAD)
            logits = model(input_ids=ids, attention_mask=mask).logits
            found = token_losses(logits, labels, causal=True)
            optimizer.zero_grad()
            (found.losses.sum() / found.counted.sum()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        now = float(all_losses(model, held_out).mean())
        if now < best:
            best, kept = now, copy.deepcopy(model.state_dict())
    model.load_state_dict(kept)
    model.train(False)
    return model
