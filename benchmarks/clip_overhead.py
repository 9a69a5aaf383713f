"""What a re-weighted step of a CLIP costs, alignment by rotation and the log included.

    ratio = median over turns of (re-weighted / plain), in seconds of CPU time, on one thread

Both projections are scored, batch 64, random inputs. A rotation is solved anew every 16 steps, so
each candidate's turn is 16 steps long. CPU time leaves out what others do on a busy machine, and
the wait for the disk whenever the log writes a part.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from clip_data import BATCH, Inputs
from clip_train import open_projections
from harness import save
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from gradmimic import Canaries, GradMimic, ScoreLog
from gradmimic.pair_model import PairModel
from gradmimic.rotation import EVERY
from gradmimic.run.clip.models import open_pair_model


@dataclass(frozen=True)
class Case:
    """A model, what it reads, and how many turns are affordable."""

    open: Callable[[int], PairModel]
    inputs: Callable[[], Inputs]
    turns: int


def open_transformers(seed: int) -> PairModel:
    """Return Hugging Face's CLIP with two towers of 2 layers, 128 wide."""
    from transformers import CLIPConfig, CLIPModel

    tower = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2}
    tower |= {"num_attention_heads": 4}
    config = CLIPConfig(
        vision_config={**tower, "image_size": 64, "patch_size": 8},
        text_config={
            **tower,
            "vocab_size": 1000,
            "max_position_embeddings": 32,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        projection_dim=128,
    )
    torch.manual_seed(seed)

    def images(model: Any, pictures: Tensor) -> Tensor:
        return F.normalize(model.visual_projection(model.vision_model(pictures).pooler_output))

    def texts(model: Any, tokens: Mapping[str, Tensor]) -> Tensor:
        return F.normalize(model.text_projection(model.text_model(tokens["words"]).pooler_output))

    def scale(model: Any) -> tuple[Tensor, None]:
        return model.logit_scale.exp(), None

    return PairModel(
        CLIPModel(config).train(),
        "transformers",
        "clip",
        encode_images=images,
        encode_texts=texts,
        scale=scale,
        projections={"image": ["visual_projection.weight"], "text": ["text_projection.weight"]},
        transform=lambda picture: picture,
        tokenize=lambda captions: {},
    )


def random_pictures() -> Inputs:
    """Return pictures of 64 pixels and captions of 32 words."""
    words = torch.randint(1, 1000, (BATCH, 32))
    return Inputs(torch.randn(BATCH, 3, 64, 64), {"words": words})


def random_features() -> Inputs:
    """Return features as the projections take them."""
    return Inputs(torch.randn(BATCH, 1280), {"features": torch.randn(BATCH, 384)})


CASES = {
    "projections of features": Case(open_projections, random_features, 20),
    "small": Case(lambda seed: open_pair_model("small", seed=seed), random_pictures, 9),
    "two transformers": Case(open_transformers, random_pictures, 3),
}


class Steps:
    """Sixteen training steps on one fixed batch."""

    def __init__(
        self,
        case: Case,
        align: Literal["none", "rotation"] | None,
        log: ScoreLog | None = None,
        canaries: Canaries | None = None,
    ) -> None:
        self.pair, self.batch = case.open(0), case.inputs()
        self.optimizer = torch.optim.AdamW(self.pair.model.parameters(), lr=1e-4)
        self.canaries, self.steps = canaries, 0
        self.mimic = None
        if align is not None:
            self.mimic = GradMimic(
                self.pair.model, case.open(1).model, params=self.pair.scored(),
                align=align, engine="forward", temperature="auto", log=log,
            )  # fmt: skip

    def __call__(self) -> None:
        for _ in range(EVERY):
            self.step()

    def step(self) -> None:
        """Take one step."""
        pair, mimic = self.pair, self.mimic
        self.optimizer.zero_grad()
        if mimic is None:
            loss = pair.losses(pair.embed(pair.model, self.batch)).mean()
        else:
            ids = torch.arange(BATCH) + self.steps * BATCH  # others serve at every step
            drawn = None
            with mimic:
                said = pair.embed(pair.model, self.batch)
                losses = pair.losses(said)
                if self.canaries is not None:
                    drawn = pair.canaries(said, ids, self.canaries)
            loss = mimic.weigh(losses, ids, epoch=self.steps, canaries=drawn)
        loss.backward()
        self.optimizer.step()
        self.steps += 1


def timed(candidates: Mapping[str, Callable[[], None]], turns: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each candidate's turns; one more runs before them."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(-1, turns):
        for name in list(candidates)[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            candidates[name]()
            if turn >= 0:
                seconds[name].append(time.process_time() - start)
    return seconds


def overhead(console: Console) -> None:
    """Time all cases, print and save them."""
    results: list[dict[str, Any]] = []
    for name, case in CASES.items():
        with ExitStack() as stack:

            def log(stack: ExitStack = stack) -> ScoreLog:
                return stack.enter_context(ScoreLog(stack.enter_context(
                    tempfile.TemporaryDirectory()
                )))  # fmt: skip

            candidates = {
                "plain": Steps(case, None),
                "plain again": Steps(case, None),
                "scored": Steps(case, "none"),
                "and rotated": Steps(case, "rotation"),
                "and logged": Steps(case, "rotation", log()),
                "and 5 % canaries": Steps(case, "rotation", log(), Canaries()),
            }
            seconds = timed(candidates, case.turns)
        plain = statistics.median(seconds["plain"]) / EVERY
        ratios = {
            key: statistics.median(a / b for a, b in zip(own, seconds["plain"], strict=True))
            for key, own in seconds.items()
            if key != "plain"
        }
        results.append({"model": name, "plain_seconds": plain, **ratios})
    table = Table("one step, times plain", *(row["model"] for row in results))
    table.add_row("plain, ms", *(f"{1e3 * row['plain_seconds']:.1f}" for row in results))
    for key in list(results[0])[2:]:
        table.add_row(key, *(f"{row[key]:.3f}" for row in results))
    console.print(table)
    save("clip-overhead", results, "python benchmarks/clip.py --overhead")
