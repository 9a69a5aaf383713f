"""Hugging Face's two-tower models: ``CLIPModel`` and ``SiglipModel``, with tokenizer and pictures.

    CLIP      projections  visual_projection, text_projection        turned together, S stays
    SigLIP    last layers  vision_model.head.mlp.fc2 and text_model.head

SigLIP adds what lies below fc2 to its output, so no rotation of the two leaves S as it is: its
reference must be near already, such as a fine-tuned copy, or one of the same initial weights.

Needs the extra ``transformers``.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradmimic.contrastive import Embedded
from gradmimic.errors import ConfigError
from gradmimic.extras import import_extra
from gradmimic.integrations.pillow import BICUBIC, MEAN, STD, Picture
from gradmimic.pair_model import PairModel
from gradmimic.wrapped import unwrapped

_FIXED = (
    "SigLIP's image tower adds what lies below its last layer to the output, so turning the last "
    "layers of both towers changes the model"
)


def open_hf(
    source: str,
    *,
    revision: str | None = None,
    weights: bool = True,
    seed: int = 0,
    image_size: int | None = None,
) -> PairModel:
    """Open a ``CLIPModel`` or ``SiglipModel``.

    Args:
        source: a folder with ``config.json``, the tokenizer's files and, best,
            ``preprocessor_config.json``; or the id of a repository on the hub.
        revision: the hub's branch, tag or commit.
        weights: read the weights too; else they are drawn from ``seed``.
        seed: of fresh weights.
        image_size: pixels, where it is not the model's own; position embeddings are interpolated.

    Raises:
        ConfigError: there is no such model, or it is another kind of model.
        MissingExtraError: transformers is not installed.
    """
    library = import_extra("transformers", "transformers")
    config = _read(library.AutoConfig, source, revision)
    kinds = {"clip": library.CLIPModel, "siglip": library.SiglipModel}
    kind: Literal["clip", "siglip"] = config.model_type
    if kind not in kinds:
        raise ConfigError(
            f"{source} is a model of the type {kind!r}; expected one of {', '.join(kinds)}, the "
            "two-tower models of transformers."
        )
    if weights:
        model = _read(kinds[kind], source, revision).float()
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = kinds[kind](config)
    own = config.vision_config.image_size
    size = image_size or own
    return pair_model_of(
        model,
        _tokenizer(_read(library.AutoTokenizer, source, revision), config, source),
        _picture(_preprocessing(source, revision), size, own, kind == "clip"),
        name=f"hf:{source}" + (f"@{revision}" if revision else ""),
        resized=size != own,
    )


def pair_model_of(
    model: Any,
    tokenizer: Any,
    transform: Callable[[Any], Tensor],
    *,
    name: str = "",
    resized: bool = False,
) -> PairModel:
    """Wrap a ``CLIPModel`` or ``SiglipModel`` that is there already.

    Args:
        model: the model.
        tokenizer: of transformers.
        transform: a PIL picture -> ``[3, s, s]``.
        name: for messages.
        resized: whether pictures are of another size than the model's own.
    """
    kind: Literal["clip", "siglip"] = model.config.model_type
    clip = kind == "clip"
    more = {"interpolate_pos_encoding": True} if resized else {}

    def scale(model: nn.Module) -> tuple[Tensor, Tensor | None]:
        own = _bare(model)
        return own.logit_scale.exp(), None if clip else own.logit_bias

    def forward(model: nn.Module, images: Tensor, tokens: Mapping[str, Tensor]) -> Embedded:
        out = model(pixel_values=images, **tokens, **more)
        return Embedded(out.image_embeds, out.text_embeds, *scale(model))  # of unit length

    return PairModel(
        model,
        name or type(model).__name__,
        kind,
        encode_images=lambda m, images: _unit(_bare(m).get_image_features(images, **more)),
        encode_texts=lambda m, tokens: _unit(_bare(m).get_text_features(**tokens)),
        scale=scale,
        projections={"image": ["visual_projection.weight"], "text": ["text_projection.weight"]}
        if clip
        else {
            "image": ["vision_model.head.mlp.fc2.weight", "vision_model.head.mlp.fc2.bias"],
            "text": ["text_model.head.weight", "text_model.head.bias"],
        },
        transform=transform,
        tokenize=Tokenize(tokenizer, model.config.text_config.max_position_embeddings, not clip),
        forward=forward,
        fixed="" if clip else _FIXED,
    )


@dataclass(frozen=True)
class Tokenize:
    """Captions to token numbers; can be pickled.

    Args:
        tokenizer: of transformers.
        most: tokens of a caption; what follows is cut off.
        whole: pad to ``most``, and let the model see the padding, as SigLIP was trained; else to
            the longest caption, and mask it.
    """

    tokenizer: Any
    most: int
    whole: bool

    def __call__(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Return ``input_ids`` ``[b, t]`` and, for CLIP, ``attention_mask``."""
        found = self.tokenizer(
            list(captions),
            padding="max_length" if self.whole else True,
            truncation=True,
            max_length=self.most,
            return_tensors="pt",
            return_attention_mask=not self.whole,
            return_token_type_ids=False,
        )
        return dict(found)


def _picture(said: Mapping[str, Any], size: int, own: int, clip: bool) -> Picture:
    """Make what ``preprocessor_config.json`` says, for pictures of another size too.

    Args:
        said: its content; what it leaves out is as of the kind's own preprocessing.
        size: of the pictures.
        own: of the pictures it was written for.
        clip: whether it is CLIP's: the short side is resized, and the middle cut out.
    """
    square = {"height": own, "width": own}
    whole = said.get("size", {"shortest_edge": own} if clip else square)
    cut = said.get("crop_size", square) if said.get("do_center_crop", clip) else None

    def pixels(value: Any) -> int:
        return round(int(value) * size / own)

    def sides(value: Any) -> tuple[int, int]:
        if not isinstance(value, Mapping):
            return pixels(value), pixels(value)
        return pixels(value["height"]), pixels(value["width"])

    short = whole if clip else None  # of old files, which hold one number
    if isinstance(whole, Mapping):
        short = whole.get("shortest_edge")
    mean = [MEAN, STD] if clip else [(0.5,) * 3, (0.5,) * 3]
    return Picture(
        sides(whole) if short is None else pixels(short),
        None if cut is None else sides(cut),
        tuple(said.get("image_mean", mean[0])),
        tuple(said.get("image_std", mean[1])),
        int(said.get("resample", BICUBIC)),
        float(said.get("rescale_factor", 1 / 255)),
    )


def _preprocessing(source: str, revision: str | None) -> Mapping[str, Any]:
    """Read ``preprocessor_config.json``; nothing where there is none."""
    file = Path(source) / "preprocessor_config.json"
    if not Path(source).is_dir():
        hub = import_extra("huggingface_hub", "hub")
        try:
            file = Path(hub.hf_hub_download(source, file.name, revision=revision))
        except Exception:  # the hub's own errors, and those of its HTTP client
            file = Path()
    if not file.is_file():
        return {}
    said: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return said


def _tokenizer(found: Any, config: Any, source: str) -> Any:
    """Refuse one without words, which transformers makes where a folder has no tokenizer."""
    words, rows = len(found), config.text_config.vocab_size
    if words <= len(found.all_special_ids) or words > rows:
        raise ConfigError(
            f"the tokenizer of {source} knows {words} tokens, and the model {rows}. Expected the "
            "model's own: save it into the same folder, tokenizer.save_pretrained(folder)."
        )
    return found


def _read(kind: Any, source: str, revision: str | None) -> Any:
    """Call ``kind.from_pretrained``, and say what is missing where it fails."""
    try:
        return kind.from_pretrained(source, revision=revision)
    except Exception as error:  # what it raises on damaged or missing files is open-ended
        at = f" at revision {revision!r}" if revision else ""
        what = "configuration" if kind.__name__ == "AutoConfig" else "weights"
        what = "tokenizer" if "Tokenizer" in kind.__name__ else what
        raise ConfigError(
            f"the {what} of {source}{at} could not be read: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:500]} Expected a folder that save_pretrained of a "
            "CLIPModel or SiglipModel and of its processor wrote, or the id of one on the hub."
        ) from error


def _bare(model: nn.Module) -> Any:
    return unwrapped(model)


def _unit(found: Any) -> Tensor:
    """Return embeddings of unit length; releases before 5 return them bare."""
    z: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    unit: Tensor = z / z.norm(dim=-1, keepdim=True)
    return unit
