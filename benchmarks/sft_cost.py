"""What scores of instructions cost, those of tokens included, against a pass for losses alone.

    ratio = median over turns of (scored / plain), in seconds of CPU time, on one thread

A Llama with fresh weights, 8 sequences of 128 tokens of which 96 count. CPU time leaves out what
others do on a busy machine.

Run: python benchmarks/sft_cost.py
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from harness import save
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from gradmimic import ScoreLog
from gradmimic.run.sft.batch import SftBatch
from gradmimic.run.sft.losses import losses_of
from gradmimic.run.sft.tokens import Pieces, TokenJournal
from gradmimic.token_losses import IGNORED
from gradmimic.units import Piece, score_units
from gradmimic.visit import Said

B, LENGTH, PROMPT, VOCABULARY, BATCHES, TURNS = 8, 128, 32, 4000, 2, 5
Call = Callable[[], None]


class Numbers:
    """A tokenizer that prints numbers."""

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(f" {own}" for own in ids)


class Units:
    """The same batches at every turn."""

    def __init__(self, batches: list[SftBatch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def read(self, wanted: Sequence[int]) -> list[Piece]:
        return [Piece(number, self._batches[number], last=True) for number in wanted]

    def shown(self) -> list[SftBatch]:
        return self._batches[:1]

    def ended(self, number: int) -> None:
        pass

    def called(self, number: int) -> str:
        return f"batch {number}"


def tiny(seed: int) -> LlamaForCausalLM:
    """Build a Llama of 4 layers, 128 wide: two million weights."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=128, intermediate_size=352, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=LENGTH, tie_word_embeddings=False,
        )
    )  # fmt: skip
    model.train(False)
    return model


def drawn() -> list[SftBatch]:
    """Draw batches."""
    made = []
    for number in range(BATCHES):
        ids = torch.randint(VOCABULARY, (B, LENGTH))
        labels = ids.clone()
        labels[:, :PROMPT] = IGNORED
        names = [f"{number}-{row}" for row in range(B)]
        made.append(SftBatch(ids, torch.ones_like(ids), labels, names, []))
    return made


def candidates() -> dict[str, Call]:
    """Return what is timed, the baseline first."""
    model, reference, batches = tiny(0), tiny(1), drawn()
    say = losses_of(None, tokens=False)

    def ask(batch: SftBatch) -> Tensor:
        said = say(model, batch)
        assert isinstance(said, Said)  # noqa: S101  what losses_of returns
        return said.losses

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                ask(batch)

    def step() -> None:
        for batch in batches:
            ask(batch).mean().backward()
        model.zero_grad()

    def scored(params: str, *, tokens: bool) -> Call:
        def run() -> None:
            with tempfile.TemporaryDirectory() as folder, ScoreLog(Path(folder) / "log") as log:
                journal = TokenJournal(Path(folder) / "tokens", Pieces(Numbers()))
                score_units(
                    {"model": model}, reference, Units(batches), range(BATCHES),
                    losses_of(None, tokens=tokens), log, ids=lambda batch: batch.ids,
                    params=params, align="none", temperature="auto", engine="forward",
                    on_batch=lambda _samples: None, on_scored=journal.add if tokens else None,
                )  # fmt: skip
                journal.close()

        return run

    return {
        "losses alone": plain,
        "losses alone, again": plain,
        "head": scored("head", tokens=False),
        "head, tokens too": scored("head", tokens=True),
        "all parameters": scored("all", tokens=False),
        "all parameters, tokens too": scored("all", tokens=True),
        "forward and backward": step,
    }


def main() -> None:
    torch.set_num_threads(1)
    calls = candidates()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(-1, TURNS):
        for name in calls if turn % 2 else reversed(calls):
            began = time.process_time()
            calls[name]()
            if turn >= 0:
                seconds[name].append(time.process_time() - began)
    base, *_ = seconds.values()
    shown = Table("a pass", "ms a batch", "times")
    results = {}
    for name, own in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(own, base, strict=True))
        milliseconds = 1000 * statistics.median(own) / BATCHES
        results[name] = {"milliseconds": round(milliseconds, 1), "ratio": round(ratio, 3)}
        shown.add_row(name, f"{milliseconds:.1f}", f"{ratio:.2f}")
    Console().print(shown)
    save("sft-cost", results, "python benchmarks/sft_cost.py")


if __name__ == "__main__":
    main()
