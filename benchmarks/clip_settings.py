"""What the CLIP benchmark trains: projections of frozen features, or a small CLIP on pixels.

The learning rates, temperatures and numbers of steps were chosen on the seeds 100 to 102, which
split the data in another way than the seeds that are reported.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from clip_data import Data, Split, Where, features, pixels
from clip_train import Course, Recipe, open_projections, train
from torch import Tensor, nn

from gradmimic import GradMimic
from gradmimic.pair_model import PairModel
from gradmimic.run.clip.models import open_pair_model

OTHER = 50  # added to the seed, for other initial weights
SIZE = 48  # pixels

Align = Literal["none", "rotation", "transport"]
features_once = cache(features)


@dataclass(frozen=True)
class Setting:
    """How one kind of model is trained.

    Args:
        name: what it is called in the results.
        open: seed -> the model with fresh weights.
        data: what it reads.
        recipe: of every training on the 500 pairs, looked at after every epoch.
        temperature: τ of the headline.
        others: more temperatures to report.
        ways: references by name, and how each is aligned.
        selecting: the ways whose selection is trained on.
        reference: of a reference of this kind, on the 200 trusted pairs.
    """

    name: str
    open: Callable[[int], PairModel]
    data: Callable[[], Data]
    recipe: Recipe
    temperature: float | Literal["auto"]
    others: tuple[float | Literal["auto"], ...]
    ways: dict[str, Align]
    selecting: tuple[str, ...]
    reference: Recipe


FEATURES = Setting(
    "features",
    open_projections,
    features_once,
    recipe=Recipe(320, 8, 1e-3, 0.01),
    temperature=0.05,
    others=(0.03, 0.1, "auto"),
    ways={"same initial weights": "none", "other initial weights": "rotation"},
    selecting=("same initial weights", "other initial weights"),
    reference=Recipe(160, 160, 3e-3, 0.01),
)
PIXELS = Setting(
    "pixels",
    lambda seed: open_pair_model("small", seed=seed, image_size=SIZE),
    cache(lambda: pixels(open_pair_model("small", image_size=SIZE))),
    recipe=Recipe(240, 8, 3e-3, 0.05),
    temperature="auto",
    others=(),
    ways={
        "same initial weights": "none",
        "other initial weights": "rotation",
        "pretrained features": "transport",
    },
    selecting=("pretrained features",),
    reference=Recipe(240, 240, 3e-3, 0.05),
)


class Beside(nn.Module):
    """A reference on frozen features, for a model on the pixels of the same pairs."""

    def __init__(self, reference: Course, layers: tuple[str, str]) -> None:
        super().__init__()
        self.reference, self.layers = reference, layers
        self.at: Where | None = None

    def forward(self, *_inputs: Any) -> dict[str, Tensor]:
        """Return the embeddings of the pairs at hand, by the layers they stand for."""
        assert self.at is not None  # noqa: S101
        said = self.reference.embed(self.at)
        return dict(zip(self.layers, (said.image, said.text), strict=True))


def train_reference(setting: Setting, way: str, parts: Split, seed: int) -> Course:
    """Train a reference on the trusted pairs."""
    kind = FEATURES if way == "pretrained features" else setting
    start = seed if way == "same initial weights" else seed + OTHER
    return train(kind.open(start), kind.data(), parts.trusted, parts, kind.reference, seed)


def bring_near(
    setting: Setting, way: str, pair: PairModel, reference: Course, **options: Any
) -> tuple[GradMimic, Callable[[Where], None] | None]:
    """Return what re-weights toward a reference, and what has to be told of each batch."""
    scored, align = pair.scored(), setting.ways[way]
    near: nn.Module = reference.pair.model
    seen = None
    if align == "transport":
        image, text = (name.removesuffix(".weight") for name in scored)
        near = beside = Beside(reference, (image, text))

        def seen(at: Where) -> None:
            beside.at = at

    mimic = GradMimic(pair.model, near, params=scored, align=align, engine="forward", **options)
    return mimic, seen
