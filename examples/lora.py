"""Train a LoRA adapter on labels of which 40 % are wrong, toward an adapter of clean ones.

Everything is tiny and made on the spot: the base, the data (which of two words is in a sentence
more often), and the reference, whose adapter begins elsewhere and has another rank.

Run: python examples/lora.py
"""

import peft
import torch
import transformers
from torch.nn import functional as F

from gradmimic import GradMimic
from gradmimic.integrations.peft import lora_reference
from gradmimic.separation import separation

WORDS, LENGTH = 12, 9


def sentences(n, seed):
    """Draw ``[n, LENGTH]`` words, and which of the words 1 and 2 each has more of, ``[n]``."""
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (4 * n, LENGTH), generator=chance)
    ids[:, ::3] = torch.randint(1, 3, ids[:, ::3].shape, generator=chance)
    more = (ids == 2).sum(1) - (ids == 1).sum(1)
    ids, more = ids[more != 0][:n], more[more != 0][:n]
    return ids, (more > 0).long()


def base():
    """Build a Llama with two classes; the same one each time."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, vocab_size=WORDS, pad_token_id=0, num_labels=2,
    )  # fmt: skip
    return transformers.LlamaForSequenceClassification(config)


def adapter(seed, r):
    """Put a fresh adapter on the base."""
    model = base()
    torch.manual_seed(seed)
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    return peft.get_peft_model(
        model, peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets)
    )


def train(model, ids, labels, epochs, mimic=None):
    """Train; return the mean score of each sample, where there is a reference."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    total = torch.zeros(len(ids))
    for epoch in range(epochs):
        chance = torch.Generator().manual_seed(epoch)
        for rows in torch.randperm(len(ids), generator=chance).split(40):
            if mimic is None:
                loss = F.cross_entropy(model(input_ids=ids[rows]).logits, labels[rows])
            else:
                with mimic:
                    logits = model(input_ids=ids[rows]).logits
                    losses = F.cross_entropy(logits, labels[rows], reduction="none")
                loss = mimic.weigh(losses)
                total[rows] += mimic.scores / epochs
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return total


def accuracy(model):
    """Return the share of right answers on other sentences."""
    ids, labels = sentences(1000, seed=9)
    with torch.no_grad():
        return float((model(input_ids=ids).logits.argmax(1) == labels).float().mean())


if __name__ == "__main__":
    better = adapter(seed=1, r=4)
    train(better, *sentences(400, seed=1), epochs=5)
    ids, labels = sentences(400, seed=2)
    wrong = torch.rand(len(ids), generator=torch.Generator().manual_seed(3)) < 0.4
    given = torch.where(wrong, 1 - labels, labels)

    plain = adapter(seed=2, r=8)
    train(plain, ids, given, epochs=5)
    model = adapter(seed=2, r=8)
    reference, params = lora_reference(model, better)
    mimic = GradMimic(model, reference, params=params, temperature="auto")
    scores = train(model, ids, given, epochs=5, mimic=mimic)
    area = separation(scores[~wrong], scores[wrong])
    print(f"reference {accuracy(better):.3f} plain {accuracy(plain):.3f} "
          f"re-weighted {accuracy(model):.3f} AUROC of wrong labels {area.value:.3f}")  # fmt: skip
