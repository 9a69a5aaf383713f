"""Tiny two-tower models of transformers, as folders that save_pretrained writes."""

import json

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ("<pad>", "<bos>", "<eos>", "<unk>", "a", "red", "blue", "dog", "cat", "on", "the", "grass")
LONGEST = 12


def save(folder, kind="clip", *, space=10, width=16):
    """Save a model with its tokenizer and its preprocessing; return the model."""
    transformers.utils.logging.disable_progress_bar()
    tokenizer().save_pretrained(folder)
    model = build(kind, space=space, width=width)
    model.save_pretrained(folder)
    said = {
        "clip": {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32},
                 "do_center_crop": True, "resample": 3, "do_resize": True},
        "siglip": {"size": {"height": 32, "width": 32}, "resample": 2, "do_resize": True,
                   "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    }[kind]  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return model


def build(kind, *, space=10, width=16):
    shape = {"hidden_size": width, "intermediate_size": 24, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    text = shape | {"vocab_size": len(WORDS), "max_position_embeddings": LONGEST,
                    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    image = shape | {"image_size": 32, "patch_size": 8}
    if kind == "clip":
        config = transformers.CLIPConfig(
            text_config=text, vision_config=image, projection_dim=space
        )
        return transformers.CLIPModel(config).eval()
    text |= {"projection_size": width}
    config = transformers.SiglipConfig(text_config=text, vision_config=image)
    return transformers.SiglipModel(config).eval()


def tokenizer():
    numbers = {word: number for number, word in enumerate(WORDS)}
    pad, begin, end, unknown = WORDS[:4]
    made = Tokenizer(models.WordLevel(numbers, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, 1), (end, 2)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token=pad, bos_token=begin, eos_token=end, unk_token=unknown
    )
