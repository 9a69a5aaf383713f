"""Make a tiny base model, its instruct version, and instructions with wrong responses: no download.

    python examples/sft.py runs/sft-data && gradmimic run examples/sft.yaml

instructions.jsonl   questions about things, in the shape of Alpaca; every fifth answer is another's
swapped.txt          the numbers of those rows, one a line
base/, instruct/     a small Llama that has read answers half of which are wrong, then right ones
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

THINGS = {
    "sky": "blue", "grass": "green", "coal": "black", "snow": "white", "blood": "red",
    "sun": "yellow", "mouse": "grey", "bark": "brown", "salmon": "pink", "plum": "purple",
}  # fmt: skip
ASKED = ("What colour is the {}?", "Name the colour of the {}.", "The {} has which colour?")
SAID = ("The {} is {}.", "I think that the {} is {}.", "As for the {}, it is {} all over.")
ROWS, WRONG = 400, 0.2
CHAT = (
    "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<pad>", "<|end|>", "<|user|>", "<|assistant|>"]


def sample(rng):
    thing = rng.choice([*THINGS])
    output = rng.choice(SAID).format(thing, THINGS[thing])
    return {"instruction": rng.choice(ASKED).format(thing), "input": "", "output": output}


def make_tokenizer(texts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL)
    tokenizer.train_from_iterator(texts, trainer)
    ends = {"pad_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT, **ends)


def make_model(vocabulary):
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def train(model, tokenizer, rows, steps):
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(steps):
        chats = []
        for row in (rows[i % len(rows)] for i in range(step * 16, step * 16 + 16)):
            said = {"user": row["instruction"], "assistant": row["output"]}
            turns = [{"role": role, "content": text} for role, text in said.items()]
            chats.append(tokenizer.apply_chat_template(turns, tokenize=False))
        batch = tokenizer(chats, padding=True, return_tensors="pt", add_special_tokens=False)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def swap(rng, rows, share):
    wrong = rng.permutation(len(rows))[: int(share * len(rows))]
    outputs = [rows[i]["output"] for i in wrong]
    for i, output in zip(wrong, outputs[1:] + outputs[:1], strict=True):
        rows[i]["output"] = output
    return sorted(wrong)


def main(folder):
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    trusted, read, rows = ([sample(rng) for _ in range(ROWS)] for _ in range(3))
    swap(rng, read, 0.5)
    tokenizer = make_tokenizer(" ".join(row.values()) for row in trusted)
    model = make_model(len(tokenizer))
    for name, own, steps in (("base", read, 120), ("instruct", trusted, 60)):
        train(model, tokenizer, own, steps)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    wrong = swap(rng, rows, WRONG)
    (folder / "instructions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "swapped.txt").write_text("\n".join(map(str, wrong)))
    print(f"{ROWS} instructions, {len(wrong)} with another's answer, and two models: {folder}.")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/sft-data"))
