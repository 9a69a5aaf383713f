"""Tiny language models, tokenizers and instructions for the tests of ``--task sft``."""

import json
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

transformers = pytest.importorskip("transformers", reason="needs the extra 'sft'")
import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers  # noqa: E402
from tokenizers.models import BPE  # noqa: E402

from gradmimic import ScoreLog  # noqa: E402
from gradmimic.run.sft.config import SftConfig  # noqa: E402
from gradmimic.run.sft.job import run_sft  # noqa: E402

CHAT = (
    "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MARKED = (
    "{% for turn in messages %}<|{{ turn.role }}|>{% if turn.role == 'assistant' %}"
    "{% generation %}{{ turn.content }}<|end|>{% endgeneration %}{% else %}"
    "{{ turn.content }}<|end|>{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<pad>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<s>"]
WORDS = "What is two plus three? It is five, and not six. The sky looks blue; why? Light scatters."


def tokenizer(template=CHAT, **more):
    """Train a byte-level tokenizer on a few words."""
    own = Tokenizer(BPE())
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    own.train_from_iterator([WORDS] * 3, trainer)
    ends = {"pad_token": "<pad>", "eos_token": "<|end|>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, chat_template=template, **ends, **more
    )


def model(seed, vocabulary):
    """Build a Llama of one layer."""
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=96, tie_word_embeddings=False,
        pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(seed)
    return transformers.AutoModelForCausalLM.from_config(config)


def write_models(folder):
    """Save a base model with its tokenizer, and a sibling near it."""
    words = tokenizer()
    base = model(0, len(words))
    base.save_pretrained(folder / "base")
    words.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    base.save_pretrained(folder / "better")


def rows(count=24):
    """Make instructions in the shape of Alpaca; no two responses are alike."""
    found = []
    for number in range(count):
        response = f"It is {number}" + ", and not six" * (number % 4) + "."
        found.append({"instruction": f"What is {number}?", "input": "", "output": response})
    return found


def write_lines(path, several):
    """Write JSON lines, in a spelling that json.dumps would not choose."""
    text = "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in several)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(scope="session", name="models")
def models_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_models(folder)
    return folder


@pytest.fixture(name="keys")
def keys_of_a_run(models, tmp_path):
    return {
        "data": str(write_lines(tmp_path / "sft.jsonl", rows())),
        "model": str(models / "base"),
        "reference": str(models / "better"),
        "canary_rate": 0.5,
        "out": str(tmp_path / "out"),
        "report": False,
    }


def run(keys, **more):
    return run_sft(SftConfig(**{**keys, **more}))


def logged(out, scorer="mimic", column="score", canaries=False):
    kind = pc.field("canary").is_valid() if canaries else pc.field("canary").is_null()
    table = ScoreLog.read(Path(out) / "log").scan(filter=kind & (pc.field("scorer") == scorer))
    found = zip(table["sample_id"].to_pylist(), table[column].to_pylist(), strict=True)
    return dict(sorted(found, key=lambda pair: int(pair[0])))


def values_of(found):
    return np.array([*found.values()])
