"""The three examples of references from elsewhere, as a reader runs them."""

import json
import re
import subprocess
import sys

import pytest
import torch
from blobs import write_pictures
from conftest import ROOT

from gradmimic.outputs import Outputs


def run_example(name, *arguments):
    """Run a script of examples/; return what it prints."""
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *map(str, arguments)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def tiny_clip(folder):
    """Save a random CLIP of 16 dimensions that reads letters."""
    transformers = pytest.importorskip("transformers")
    letters = "abcdefghijklmnopqrstuvwxyz."
    tokens = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    small = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ends = {
        "bos_token_id": len(tokens) - 2,
        "eos_token_id": len(tokens) - 1,
        "pad_token_id": len(tokens) - 1,
    }
    config = transformers.CLIPConfig(
        text_config={**small, **ends, "vocab_size": len(tokens)},
        vision_config={**small, "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt")
    ).save_pretrained(folder)
    size = {"shortest_edge": 16}
    transformers.CLIPImageProcessor(size=size, crop_size=16).save_pretrained(folder)


@pytest.mark.slow
def test_clip_is_asked_as_its_own_forward_pass_does(tmp_path):
    picture = pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
    tiny_clip(tmp_path / "clip")
    write_pictures(tmp_path / "photos", n=6)
    out = tmp_path / "outputs.parquet"
    printed = run_example(
        "reference_clip_zero_shot.py", tmp_path / "clip", tmp_path / "photos", out
    )
    assert re.search(r"agrees with the given labels: [01]\.\d+\n$", printed)
    outputs = Outputs.read(out)
    assert (len(outputs), outputs.kind) == (6, "logits")

    import transformers

    ids = ["red/000.png", "blue/001.png"]
    pictures = [picture.open(tmp_path / "photos" / name).convert("RGB") for name in ids]
    clip, *readers = (
        kind.from_pretrained(tmp_path / "clip")
        for kind in (
            transformers.CLIPModel,
            transformers.CLIPTokenizer,
            transformers.CLIPImageProcessor,
        )
    )
    tokens = readers[0](
        ["a photo of a blue.", "a photo of a red."], padding=True, return_tensors="pt"
    )
    assert len(set(map(tuple, tokens["input_ids"].tolist()))) == 2
    with torch.no_grad():
        logits = clip(**tokens, **readers[1](pictures, return_tensors="pt")).logits_per_image
    expected = logits - logits.mean(1, keepdim=True)  # [2, 2]
    assert expected.abs().min() > 0.01
    torch.testing.assert_close(outputs.of(ids)[0], expected, atol=5e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reference_knn.py", "reference_ensemble.py"])
def test_a_reference_without_weights_helps_a_network(name):
    pytest.importorskip("sklearn", reason="needs the extra 'demo'")
    printed = run_example(name)
    _, plain, reweighted, auroc = map(float, re.findall(r"  (\d\.\d+)\n", printed))
    assert reweighted > plain + 0.02
    assert auroc > 0.95
