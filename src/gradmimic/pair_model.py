"""A contrastive model as the rest of the project sees it, whatever library it came from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from gradmimic.contrastive import Embedded, clip_losses, siglip_losses

Tower = Literal["image", "text", "both"]


class PairInputs(Protocol):
    """What goes into a model: pictures ``[b, 3, s, s]`` and what the tokenizer made of captions."""

    @property
    def images(self) -> Tensor: ...

    @property
    def tokens(self) -> Mapping[str, Tensor]: ...


@dataclass(frozen=True, eq=False)
class PairModel:
    """A contrastive model, with all that is needed to feed, train, score and evaluate it.

    Args:
        model: the module; its weights are θ.
        name: as the user wrote it.
        loss: ``"clip"`` or ``"siglip"``.
        encode_images: ``(model, images) -> [b, e]``, of unit length.
        encode_texts: ``(model, tokens) -> [b, e]``, of unit length.
        scale: ``(model) -> (s, β or None)``, both tensors with their graph.
        projections: names of the last parameters of each tower.
        transform: a PIL picture in RGB -> ``[3, s, s]`` float32; can be pickled for workers.
        tokenize: captions -> named tensors ``[b, t]``; can be pickled for workers.
    """

    model: nn.Module
    name: str
    loss: Literal["clip", "siglip"]
    encode_images: Callable[[nn.Module, Tensor], Tensor]
    encode_texts: Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
    scale: Callable[[nn.Module], tuple[Tensor, Tensor | None]]
    projections: Mapping[Literal["image", "text"], Sequence[str]]
    transform: Callable[[Any], Tensor]
    tokenize: Callable[[Sequence[str]], Mapping[str, Tensor]]

    def embed(self, model: nn.Module, batch: PairInputs) -> Embedded:
        """Return what ``model``, this one or another checkpoint of it, says of a batch."""
        scale, bias = self.scale(model)
        image = self.encode_images(model, batch.images)
        return Embedded(image, self.encode_texts(model, batch.tokens), scale, bias)

    def losses(self, pairs: Embedded) -> Tensor:
        """Return the losses ``[b]`` that this model is trained with."""
        return clip_losses(pairs) if self.loss == "clip" else siglip_losses(pairs)

    def scored(self, tower: Tower = "both") -> list[str]:
        """Name the last projection of the image tower, of the text tower, or both."""
        towers = ("image", "text") if tower == "both" else (tower,)
        return [name for own in towers for name in self.projections[own]]
