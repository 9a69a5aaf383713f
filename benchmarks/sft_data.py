"""Instructions with swapped responses: what ``sft.py`` reads, splits and tokenizes.

999 instructions with responses, 300 pages of the web, and 600 conversations of another source.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

from gradmimic.token_losses import IGNORED

DATA = Path(os.environ.get("GRADMIMIC_DATA", "../shared/data")) / "text"
PAD, BEGIN, ANSWER, END = range(4)
PROMPT, RESPONSE, PAGE = 64, 96, 160  # tokens, at most


@dataclass(frozen=True)
class Pair:
    """A prompt and its response, in tokens."""

    prompt: list[int]
    response: list[int]

    def ids(self, *, prompted: bool = True) -> tuple[list[int], list[int]]:
        """Return the tokens and the labels; without its prompt the response stands alone."""
        before = [BEGIN, *(self.prompt if prompted else []), ANSWER]
        return before + self.response, [IGNORED] * len(before) + self.response


Row = tuple[list[int], list[int]]  # tokens, labels


@dataclass(frozen=True)
class Texts:
    """All that there is to read."""

    pairs: list[Pair]
    others: list[Row]  # web pages, and conversations of another source; every token counts


@dataclass(frozen=True)
class Split:
    """What one seed trains on, and what it judges."""

    trusted: list[Pair]
    held_out: list[Pair]
    judged: list[Pair]
    swapped: np.ndarray  # [n] bool, of those that are judged


def read(name: str) -> list[dict[str, Any]]:
    """Return the rows of one file."""
    text = (DATA / name).read_text(encoding="utf-8")
    return (
        [json.loads(line) for line in text.splitlines()] if name.endswith("l") else json.loads(text)
    )


def web() -> list[str]:
    """Return raw pages."""
    return [row["text"] for row in read("c4_demo.jsonl")]


def chats() -> list[tuple[str, str]]:
    """Return first turns of the other conversations, with their (better) answers."""
    found = []
    for row in read("dpo_en_demo.json"):
        found.append((row["conversations"][-1]["value"], row["chosen"]["value"]))
    for row in read("kto_en_demo.json"):
        *_, asked, answer = row["messages"]
        found.append((asked["content"], answer["content"]))
    return found


def instructions() -> list[tuple[str, str]]:
    """Return every instruction with its input, and its response."""
    return [
        (f"{row['instruction']}\n{row['input']}".strip(), row["output"])
        for row in read("alpaca_en_demo.json")
        if row["output"].strip()
    ]


def tokenizer_of(texts: Sequence[str], size: int) -> Tokenizer:
    """Train a byte-level BPE; it never sees which responses are swapped."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<s>", "<answer>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def encode(tokenizer: Tokenizer, pairs: Sequence[tuple[str, str]]) -> list[Pair]:
    """Cut prompts and responses into tokens."""
    return [
        Pair(
            tokenizer.encode(prompt).ids[:PROMPT],
            [*tokenizer.encode(response).ids[: RESPONSE - 1], END],
        )
        for prompt, response in pairs
    ]


def pages(tokenizer: Tokenizer) -> list[list[int]]:
    """Cut the web into sequences of tokens."""
    stream = [token for text in web() for token in (BEGIN, *tokenizer.encode(text).ids)]
    return [stream[start : start + PAGE] for start in range(0, len(stream) - PAGE, PAGE)]


def read_all(size: int) -> Texts:
    """Read and tokenize everything; the tokenizer sees texts, not which belong together."""
    own, other = instructions(), chats()
    texts = [*web(), *("\n".join(pair) for pair in (*own, *other))]
    tokenizer = tokenizer_of(texts, size)
    talks = [pair.ids()[0] for pair in encode(tokenizer, other)]
    return Texts(encode(tokenizer, own), [(ids, ids) for ids in (*pages(tokenizer), *talks)])


def exchanged(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """Give every prompt the response of another."""
    order = np.random.default_rng([seed, 2]).permutation(len(pairs))
    given = list(pairs)
    for row, partner in zip(order, np.roll(order, 1), strict=True):
        given[row] = Pair(pairs[row].prompt, pairs[partner].response)
    return given


def split(pairs: Sequence[Pair], seed: int, trusted: int, held_out: int, share: float) -> Split:
    """Shuffle, and swap the responses of some pairs among themselves: none keeps its own."""
    chance = np.random.default_rng(seed)
    order = chance.permutation(len(pairs))
    own = [pairs[row] for row in order]
    judged = own[trusted + held_out :]
    rows = chance.choice(len(judged), round(share * len(judged)), replace=False)
    partners = np.roll(rows, 1)  # one cycle through all of them, in random order
    swapped = np.zeros(len(judged), bool)
    swapped[rows] = True
    given = list(judged)
    for row, partner in zip(rows, partners, strict=True):
        given[row] = Pair(judged[row].prompt, judged[partner].response)
    return Split(own[:trusted], own[trusted : trusted + held_out], given, swapped)


def batch(rows: Sequence[Row]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad on the right: tokens, mask and labels, ``[b, t]`` each."""
    longest = max(len(ids) for ids, _ in rows)
    padded = [(ids, own, longest - len(ids)) for ids, own in rows]
    return (
        torch.tensor([ids + [PAD] * gap for ids, _, gap in padded]),
        torch.tensor([[1] * len(ids) + [0] * gap for ids, _, gap in padded]),
        torch.tensor([own + [IGNORED] * gap for _, own, gap in padded]),
    )
