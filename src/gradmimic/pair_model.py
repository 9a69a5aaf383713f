"""A contrastive model as the rest of the project sees it, whatever library it came from.

    with mimic:
        pairs = pair.embed(model, batch)
        losses = pair.losses(pairs)
        drawn = pair.canaries(pairs, batch.ids, canaries)
    loss = mimic.weigh(losses, batch.ids, canaries=drawn)

What differs between libraries is behind these three.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from gradmimic.canaries import Canaries, CanaryLosses
from gradmimic.contrastive import Batch, Embedded, clip_losses, siglip_losses

Tower = Literal["image", "text", "both"]
Tokens = Mapping[str, Tensor]


class PairInputs(Protocol):
    """What goes into a model: pictures ``[b, 3, s, s]`` and what the tokenizer made of captions."""

    @property
    def images(self) -> Tensor:
        """Pictures ``[b, 3, s, s]``."""

    @property
    def tokens(self) -> Tokens:
        """Tokens by name, ``[b, t]`` each."""


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
        forward: ``(model, images, tokens)`` -> all that the model says, by calling it, so that what
            is wrapped around it (DDP) sees the pass. By default each tower by itself.
        fixed: why turning both projections together would change what the model says; empty where
            it would not, as of all models that end in two projections.
    """

    model: nn.Module
    name: str
    loss: Literal["clip", "siglip"]
    encode_images: Callable[[nn.Module, Tensor], Tensor]
    encode_texts: Callable[[nn.Module, Tokens], Tensor]
    scale: Callable[[nn.Module], tuple[Tensor, Tensor | None]]
    projections: Mapping[Literal["image", "text"], Sequence[str]]
    transform: Callable[[Any], Tensor]
    tokenize: Callable[[Sequence[str]], Tokens]
    forward: Callable[[nn.Module, Tensor, Tokens], Embedded] | None = None
    fixed: str = ""

    def embed(self, model: nn.Module, batch: PairInputs) -> Embedded:
        """Return what ``model``, this one or another checkpoint of it, says of a batch.

        Args:
            model: the module, wrapped (DDP, ``torch.compile``) or not.
            batch: b pairs.
        """
        if self.forward is not None:
            return self.forward(model, batch.images, batch.tokens)
        image = self.encode_images(model, batch.images)
        return Embedded(image, self.encode_texts(model, batch.tokens), *self.scale(model))

    def losses(
        self, pairs: Embedded, *, batch: Batch = "global", gather_with_grad: bool = True
    ) -> Tensor:
        """Return the losses ``[b]`` that this model is trained with.

        Args:
            pairs: what :meth:`embed` returned.
            batch: as of :func:`gradmimic.contrastive.clip_losses`, like the next one.
            gather_with_grad: likewise.
        """
        losses = clip_losses if self.loss == "clip" else siglip_losses
        return losses(pairs, batch=batch, gather_with_grad=gather_with_grad)

    def canaries(
        self,
        pairs: Embedded,
        ids: Any,
        canaries: Canaries,
        *,
        batch: Batch = "global",
        gather_with_grad: bool = True,
    ) -> CanaryLosses:
        """Return the losses ``[c]`` of some samples with the captions of others.

        Args:
            pairs: what :meth:`embed` returned.
            ids: ``[b]``, of the samples.
            canaries: draws them.
            batch: as given to :meth:`losses`, like the next one.
            gather_with_grad: likewise.
        """
        table = pairs.table(batch, gather_with_grad=gather_with_grad)
        of = table.clip if self.loss == "clip" else table.siglip
        return canaries.pairs(pairs.image, ids, of)

    def scored(self, tower: Tower = "both") -> list[str]:
        """Name the last projection of the image tower, of the text tower, or both."""
        towers: tuple[Literal["image", "text"], ...] = ("image", "text")
        if tower != "both":
            towers = (tower,)
        return [name for own in towers for name in self.projections[own]]
