"""Trainings of the CLIP benchmark, plain or re-weighted, and what is seen of them on the way."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from clip_data import CAPTIONS, Data, Pool, Split, Where
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic import GradMimic, ScoreLog
from gradmimic.canaries import CanaryLosses
from gradmimic.contrastive import Embedded
from gradmimic.pair_model import PairModel
from gradmimic.run.clip.evaluate import retrieval

SPACE = 128


class Projections(nn.Module):
    """Two linear maps from frozen features into a common space, and a temperature."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.image, self.text = nn.Linear(1280, SPACE, False), nn.Linear(384, SPACE, False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, images: Tensor, texts: Tensor) -> Embedded:
        image, text = F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1)
        return Embedded(image, text, self.log_scale.exp())


def open_projections(seed: int) -> PairModel:
    """Return fresh projections as a pair model."""
    return PairModel(
        Projections(seed),
        "projections",
        "clip",
        encode_images=lambda model, images: F.normalize(_here(model).image(images), dim=1),
        encode_texts=lambda model, said: F.normalize(_here(model).text(said["features"]), dim=1),
        scale=lambda model: (_here(model).log_scale.exp(), None),
        projections={"image": ["image.weight"], "text": ["text.weight"]},
        transform=lambda picture: picture,
        tokenize=lambda captions: {},
        forward=lambda model, images, tokens: model(images, tokens["features"]),
    )


@dataclass(eq=False)
class Course:
    """A training that is over.

    Args:
        pair: the model.
        data: what it reads.
        steps: ``[k]`` numbers of steps after which it was looked at.
        recall: ``[k]`` R@10 on the test images, the mean of both directions, in [0, 1].
        losses: by name ``[k]``: on clean pairs that it never saw (``held out``), on those of its
            training set that are not swapped (``correct``), on its training images with their own
            captions (``own captions``).
        scores: ``[n]``, the mean mimic score over the visits; NaN where there was none.
    """

    pair: PairModel
    data: Data
    steps: list[int] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    scores: Tensor = field(default_factory=lambda: torch.zeros(0))

    @torch.no_grad()
    def embed(self, at: Where) -> Embedded:
        """Return what it says of some pairs."""
        return self.pair.embed(self.pair.model, self.data.batch(at))

    def similarity(self, at: Where) -> Tensor:
        """Return the cosine ``[b]`` of each pair: its CLIP score."""
        said = self.embed(at)
        return (said.image * said.text).sum(1)

    def mean_similarity(self, pool: Pool) -> Tensor:
        """Return the mean cosine ``[n]`` over the captions of each real pair."""
        images, owners = pool.images[: pool.real], pool.owners[: pool.real]
        each = [
            self.similarity(Where(images, owners, torch.full_like(images, j)))
            for j in range(CAPTIONS)
        ]
        return torch.stack(each).mean(0)

    def look(self, step: int, parts: Split) -> None:
        """Measure retrieval, and the loss on clean pairs."""
        test, noisy = parts.test, parts.noisy
        five = torch.arange(CAPTIONS).repeat(len(test))
        owner = torch.arange(len(test)).repeat_interleave(CAPTIONS)
        texts = self.embed(Where(test[owner], test[owner], five)).text  # [500, e]
        images = self.embed(_own(test)).image
        self.steps.append(step)
        self.recall.append(retrieval(images, texts, owner).mean_at_10)
        clean = {
            "held out": test,
            "correct": noisy.images[~parts.wrong],
            "own captions": noisy.images,
        }
        for name, rows in clean.items():
            loss = self.pair.losses(self.embed(_own(rows))).mean()
            self.losses.setdefault(name, []).append(float(loss))

    def reaches(self, loss: float, name: str) -> float | None:
        """Return the share of the steps after which its loss on clean pairs is no higher."""
        for step, own in zip(self.steps, self.losses[name], strict=True):
            if own <= loss:
                return step / self.steps[-1]
        return None


Scorers = Mapping[str, Callable[[Where], Tensor]]


class Recipe(NamedTuple):
    """Steps of AdamW, steps between two looks, learning rate and weight decay."""

    steps: int
    every: int
    lr: float
    weight_decay: float


def train(
    pair: PairModel,
    data: Data,
    pool: Pool,
    parts: Split,
    recipe: Recipe,
    seed: int,
    *,
    mimic: GradMimic | None = None,
    log: ScoreLog | None = None,
    beside: Scorers | None = None,
    seen: Callable[[Where], None] | None = None,
) -> Course:
    """Train a model; where there is a mimic, by its weights.

    Args:
        pair: the model with its initial weights.
        data: what it reads.
        pool: pairs to train on, perhaps with planted canaries.
        parts: whom to measure on.
        recipe: how, over as many epochs as its steps take.
        seed: of the batches: the same pool and seed give the same batches in the same order.
        mimic: re-weights.
        log: where other scorers' scores go.
        beside: these other scorers.
        seen: is told of each batch before the forward pass.
    """
    course = Course(pair, data)
    total, visits = torch.zeros(len(pool)), torch.zeros(len(pool))
    optimizer = torch.optim.AdamW(
        pair.model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    for step, (epoch, rows, at) in enumerate(pool.batches(seed)):
        if step == recipe.steps:
            break
        batch = data.batch(at)
        if mimic is None:
            loss = pair.losses(pair.embed(pair.model, batch)).mean()
        else:
            real = int((rows < pool.real).sum())
            if seen is not None:
                seen(at)
            with mimic:
                losses = pair.losses(pair.embed(pair.model, batch))
            ids, planted = at.images[:real], None
            kinds = ["swapped"] * (len(rows) - real)
            if kinds:
                planted = CanaryLosses(losses[real:], at.images[real:].tolist(), kinds, True)
            loss = mimic.weigh(losses[:real], ids, epoch=epoch, canaries=planted)
            if mimic.scores is not None:
                total[rows[:real]] += mimic.scores
                visits[rows[:real]] += 1
            if log is not None:
                even = [1 / len(rows)] * len(rows)
                for name, score in (beside or {}).items():
                    log.append(
                        at.images, score(at), even, losses.detach(),
                        epoch=epoch, step=step, scorer=name, canary=[*[None] * real, *kinds],
                    )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % recipe.every == 0:
            course.look(step + 1, parts)
    course.scores = total / visits
    return course


def _here(model: nn.Module) -> Projections:
    return cast(Projections, model)


def _own(rows: Tensor) -> Where:
    """Return images with the first of their own captions."""
    return Where(rows, rows, torch.zeros_like(rows))
