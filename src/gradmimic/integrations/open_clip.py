"""OpenCLIP's models, and the loss of every sample in the place of its ``ClipLoss``.

    loss = PairLosses.like(create_loss(args))      # as OpenCLIP's own training makes it
    with mimic:
        losses = loss(**model(images, texts))      # [b], where OpenCLIP's own loss is their mean
    mimic.weigh(losses, ids).backward()

So it is in a training task of OpenCLIP's, ``CLIPTask(model, loss=loss)``, which returns what its
loss returns: ``task(images, texts)["loss"]`` is ``[b]`` then.

Needs the extra ``open_clip``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradmimic.contrastive import Batch, Embedded, clip_losses, siglip_losses
from gradmimic.errors import ConfigError, UsageError, listed
from gradmimic.extras import import_extra
from gradmimic.pair_model import PairModel
from gradmimic.wrapped import unwrapped

# By tower, the last layer's parameters: of a bare matrix, of a linear layer in its place, of a
# ResNet's pooling, of a transformer from timm or Hugging Face.
_LAST = {
    "image": ("visual.proj", "visual.head.proj", "visual.attnpool.c_proj", "visual.trunk.head"),
    "text": ("text_projection", "text.text_projection", "text.proj", "text.proj.2"),
}
_ADDED = "visual.trunk.attn_pool.mlp.fc2"  # timm's pooling, as SigLIP has it
_FIXED = (
    "the image tower's attention pooling adds what lies below its last layer to the output, so "
    "turning the last layers of both towers changes the model"
)


def open_model(
    architecture: str,
    pretrained: str | None = None,
    *,
    seed: int = 0,
    image_size: int | None = None,
) -> PairModel:
    """Open one of OpenCLIP's models.

    Args:
        architecture: as ``open_clip.list_models()`` names it, or ``hf-hub:owner/name``.
        pretrained: the tag of its weights; None draws fresh ones from ``seed``.
        seed: of fresh weights.
        image_size: pixels, where it is not the model's own.

    Raises:
        ConfigError: OpenCLIP does not know it, or it has no two towers.
        MissingExtraError: OpenCLIP is not installed.
    """
    library = import_extra("open_clip", "open_clip")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model, _, transform = library.create_model_and_transforms(
                architecture, pretrained=pretrained, force_image_size=image_size
            )
            tokenizer = library.get_tokenizer(architecture)
        except Exception as error:  # what it raises on unknown names and damaged files is open
            raise ConfigError(
                f"OpenCLIP has no model {architecture!r}"
                + (f" with the weights {pretrained!r}" if pretrained else "")
                + f": {type(error).__name__}: {' '.join(str(error).split())[:500]} Expected what "
                "open_clip.list_pretrained() lists; or an architecture and a file of weights, "
                "'open_clip:ViT-B-32/weights.pt'."
            ) from error
    name = f"open_clip:{architecture}" + (f"/{pretrained}" if pretrained else "")
    return pair_model_of(model, transform, tokenizer, name=name)


def pair_model_of(
    model: nn.Module,
    transform: Callable[[Any], Tensor],
    tokenizer: Callable[[Sequence[str]], Tensor],
    *,
    name: str = "",
) -> PairModel:
    """Wrap one of OpenCLIP's models that is there already.

    Args:
        model: its towers give ``encode_image`` and ``encode_text``.
        transform: a PIL picture -> ``[3, s, s]``; that of evaluation, since scores of randomly cut
            pictures are noisier.
        tokenizer: captions -> ``[b, t]``.
        name: for messages.

    Raises:
        ConfigError: its last layers have other names than OpenCLIP gives them.
    """
    parameters = dict(model.named_parameters())
    projections = {tower: _last(parameters, names) for tower, names in _LAST.items()}
    fixed = ""
    if not projections["image"]:
        projections["image"] = _last(parameters, (_ADDED,))
        fixed = _FIXED
    for tower, found in projections.items():
        if not found:
            raise ConfigError(
                f"the last layer of the {tower} tower of {name or type(model).__name__} is none of "
                f"{listed(_LAST[tower])}; its last parameters are "
                f"{listed([*parameters][-4:])}. Build a gradmimic.pair_model.PairModel that says."
            )
    biased = getattr(model, "logit_bias", None) is not None

    def forward(model: nn.Module, images: Tensor, tokens: Mapping[str, Tensor]) -> Embedded:
        out = model(images, tokens["text"])
        if isinstance(out, Mapping):
            out = (
                out["image_features"],
                out["text_features"],
                out["logit_scale"],
                out.get("logit_bias"),
            )
        return Embedded(*out)

    return PairModel(
        model,
        name or type(model).__name__,
        "siglip" if biased else "clip",
        encode_images=lambda m, images: _bare(m).encode_image(images, normalize=True),
        encode_texts=lambda m, tokens: _bare(m).encode_text(tokens["text"], normalize=True),
        scale=lambda m: (_bare(m).logit_scale.exp(), _bare(m).logit_bias if biased else None),
        projections=projections,  # type: ignore[arg-type]
        transform=transform,
        tokenize=Tokenize(tokenizer),
        forward=forward,
        fixed=fixed,
    )


@dataclass(frozen=True)
class Tokenize:
    """Captions to token numbers, by one of OpenCLIP's tokenizers."""

    tokenizer: Callable[[Sequence[str]], Tensor]

    def __call__(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Return ``{"text": [b, t]}``."""
        return {"text": self.tokenizer(list(captions))}


class PairLosses(nn.Module):
    """The loss of every sample, called as OpenCLIP calls its losses.

    The softmax, or the sum over pairs, is over the samples of all ranks, as OpenCLIP's is. Two of
    its three ways to get the gradient there come to the same, up to a factor of the number of
    ranks. The third, ``local_loss`` without ``gather_with_grad``, takes all gathered embeddings for
    constants; here only those of other ranks are. Scores are the same in all of them.

    Args:
        kind: ``"clip"`` or ``"siglip"``.
        local_loss: as of OpenCLIP, like the next one.
        gather_with_grad: likewise.
        batch: ``"local"`` leaves other ranks out.

    Example:
        >>> same = torch.eye(2)
        >>> PairLosses("clip")(same, same, torch.tensor(100.0)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        kind: Literal["clip", "siglip"] = "clip",
        *,
        local_loss: bool = False,
        gather_with_grad: bool = False,
        batch: Batch = "global",
    ) -> None:
        super().__init__()
        self._losses = {"clip": clip_losses, "siglip": siglip_losses}[kind]
        self._with_grad = gather_with_grad or not local_loss
        self._batch: Batch = batch

    @classmethod
    def like(cls, loss: nn.Module) -> "PairLosses":
        """Take the settings of one of OpenCLIP's losses.

        Raises:
            UsageError: it is neither ``ClipLoss`` nor ``SigLipLoss``.
        """
        kinds = {"ClipLoss": "clip", "SigLipLoss": "siglip"}
        own = type(loss).__name__
        if own not in kinds:
            raise UsageError(
                f"{own} has no loss of single pairs here; expected {' or '.join(kinds)}."
            )
        return cls(
            kinds[own],  # type: ignore[arg-type]
            local_loss=getattr(loss, "local_loss", True),
            gather_with_grad=getattr(loss, "gather_with_grad", True),
            batch="global" if getattr(loss, "world_size", 1) > 1 else "local",
        )

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return ``[b]``, of what the model returned; named as OpenCLIP names it, if asked to."""
        pairs = Embedded(image_features, text_features, logit_scale, logit_bias)
        losses = self._losses(pairs, batch=self._batch, gather_with_grad=self._with_grad)
        return {"contrastive_loss": losses} if output_dict else losses


def _last(parameters: Mapping[str, Tensor], names: Sequence[str]) -> list[str]:
    """Return the parameters of the first of these layers that is there."""
    for name in names:
        found = [key for key in (name, f"{name}.weight", f"{name}.bias") if key in parameters]
        if found:
            return found
    return []


def _bare(model: nn.Module) -> Any:
    return unwrapped(model)
