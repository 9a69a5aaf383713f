"""What a reference says of the very pairs that the model sees, for ``align="transport"``.

    model(images, tokens) ──► features h of both towers ─► W h
    reference(images, tokens) ─► u, v                      W* = argmin ‖h W − u‖² + λ ‖W‖²

When the layers below the projections are trained too, the features part from the reference's, and
no rotation brings its projections near. The map from the present features to what it says does.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from gradmimic.contrastive import Embedded
from gradmimic.pair_model import PairModel


class Answers(nn.Module):
    """Says what a reference makes of the last pairs that went into a model.

    Args:
        reference: a whole model that takes the same inputs.
        pair: the model being trained, whose last layers are two projections.
    """

    def __init__(self, reference: PairModel, pair: PairModel) -> None:
        super().__init__()
        self._reference, self.towers = reference, reference.model
        self._layers = [
            pair.scored(tower)[0].removesuffix(".weight") for tower in ("image", "text")
        ]
        self._inputs: tuple[Tensor, Mapping[str, Tensor]] | None = None

    def beside(self, pair: PairModel) -> PairModel:
        """Return a pair model that shows its inputs to the reference."""
        inner = pair.forward

        def forward(model: nn.Module, images: Tensor, tokens: Mapping[str, Tensor]) -> Embedded:
            self._inputs = images, tokens
            assert inner is not None  # noqa: S101  or the reference could not be asked
            return inner(model, images, tokens)

        return replace(pair, forward=forward)

    def forward(self, *_args: Any, **_named: Any) -> dict[str, Tensor]:
        """Return ``[b, e_ref]`` for each projection's name, whatever the model was called with."""
        assert self._inputs is not None  # noqa: S101  beside() has seen them
        images, tokens = self._inputs
        said = (
            self._reference.encode_images(self.towers, images),
            self._reference.encode_texts(self.towers, tokens),
        )
        return dict(zip(self._layers, said, strict=True))
