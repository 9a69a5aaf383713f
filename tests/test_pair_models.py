"""Which model a word opens, what fills it, and what is read of a reference."""

from collections.abc import Mapping

import hf_towers
import pytest
import torch
from safetensors.torch import save_file

from gradmimic import GradMimic
from gradmimic.checkpoint import SafeTensors
from gradmimic.errors import ConfigError, ReferenceMismatchError
from gradmimic.reference import Reference
from gradmimic.run.clip.models import (
    load_weights,
    open_pair_model,
    pick_pair_alignment,
    read_pair_reference,
)

BOTH = ["visual_projection.weight", "text_projection.weight"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(1)
    hf_towers.save(path)
    return path


@pytest.fixture
def pair(folder):
    return open_pair_model(f"hf:{folder}", weights=False, seed=7)


@pytest.mark.parametrize("spec", ["smal", "small:2", "hf:", "open_clip:", "resnet50", ""])
def test_other_words_are_refused(spec):
    with pytest.raises(
        ConfigError, match=rf"model='{spec}' is unknown; expected 'small', 'hf:<fol"
    ):
        open_pair_model(spec)


# Weights


@pytest.mark.parametrize("form", ["pt", "safetensors", "wrapped", "folder", "spec", "with buffers"])
def test_saved_weights_come_back(folder, tmp_path, pair, form):
    saved = open_pair_model(f"hf:{folder}").model.state_dict()
    source = str(tmp_path / "weights.pt")
    if form == "pt":
        torch.save(saved, source)
    elif form == "wrapped":  # by DDP and torch.compile
        torch.save({"model": {f"module._orig_mod.{n}": w for n, w in saved.items()}}, source)
    elif form == "with buffers":
        torch.save(saved | {"text_model.embeddings.position_ids": torch.arange(12)}, source)
    elif form == "safetensors":
        source = str(tmp_path / "weights.safetensors")
        save_file({name: w.contiguous() for name, w in saved.items()}, source)
    else:
        source = str(folder) if form == "folder" else f"hf:{folder}"
    load_weights(pair, source)
    for name, weight in pair.model.state_dict().items():
        assert torch.equal(weight, saved[name]), name


def test_weights_of_another_model_are_explained(tmp_path, pair):
    saved = pair.model.state_dict()
    del saved["logit_scale"]
    saved["text_projection.weight"] = torch.zeros(3, 16)
    saved["head.weight"] = torch.zeros(2)
    torch.save(saved, tmp_path / "other.pt")
    before = pair.model.text_projection.weight.clone()
    fit = len(saved) - 2
    with pytest.raises(
        ReferenceMismatchError,
        match=r"other\.pt are not those of hf:.*; missing: logit_scale; unknown to the model: "
        r"head\.weight; of another shape: text_projection\.weight \[3, 16\] for \[10, 16\]\. "
        rf"{fit} of {fit + 2} fit\.",
    ):
        load_weights(pair, str(tmp_path / "other.pt"))
    assert torch.equal(pair.model.text_projection.weight, before)
    with pytest.raises(ReferenceMismatchError, match="no reference file at .*nothing"):
        load_weights(pair, str(tmp_path / "nothing"))
    with pytest.raises(ReferenceMismatchError, match="'small' has fresh weights only"):
        load_weights(pair, "small")


# References


def test_only_what_is_scored_is_read(folder, pair, monkeypatch):
    read = []
    own = SafeTensors.read
    monkeypatch.setattr(
        SafeTensors, "read", lambda file, name: (read.append(name), own(file, name))[1]
    )
    reference = read_pair_reference(str(folder), pair)
    assert reference.projections == tuple(BOTH)
    mimic = GradMimic(pair.model, reference, params=pair.scored("text"), align="rotation")
    assert mimic.aligned == "rotation"
    assert sorted(set(read)) == sorted(BOTH)


def test_a_reference_may_be_of_another_architecture_and_width(tmp_path, pair):
    torch.manual_seed(2)
    other = hf_towers.build("clip", space=24)
    state = other.state_dict() | {"text_model.more.layers": torch.zeros(2)}
    torch.save(state, tmp_path / "wide.pt")
    reference = read_pair_reference(str(tmp_path / "wide.pt"), pair)
    assert GradMimic(pair.model, reference, params=BOTH, align="rotation").aligned == "rotation"
    assert pick_pair_alignment(reference, pair)[0] == "rotation"
    with pytest.raises(ReferenceMismatchError, match=r"model \[10, 16\], reference \[24, 16\]"):
        GradMimic(pair.model, reference, params=BOTH, align="none")


@pytest.mark.parametrize("custom", [False, True])
def test_projections_under_openclips_names(tmp_path, pair, custom):
    """x @ P there, x Wᵀ here."""
    image, text = torch.randn(16, 10), torch.randn(16, 10)
    prefix = "text." if custom else ""
    state = {"visual.proj": image, f"{prefix}text_projection": text, "ln_final.weight": text[0]}
    torch.save({"state_dict": {f"module.{n}": w for n, w in state.items()}}, tmp_path / "oc.pt")
    reference = read_pair_reference(str(tmp_path / "oc.pt"), pair)
    assert torch.equal(reference.tensors[BOTH[0]], image.T)
    assert torch.equal(reference.tensors[BOTH[1]], text.T)
    assert "module.visual.proj as visual_projection.weight" in reference.source


def test_what_a_reference_lacks_is_listed(tmp_path, pair):
    torch.save({"visual.proj": torch.zeros(16, 10), "x.q_proj": torch.zeros(1)}, tmp_path / "a.pt")
    with pytest.raises(
        ReferenceMismatchError,
        match=r"a\.pt lacks 1 of the 2 weights that are scored in hf:.*: text_projection\.weight\. "
        r"It holds 2 weights, such as visual\.proj, x\.q_proj\. Expected the same names, or the "
        r"two projections under the names of transformers or OpenCLIP",
    ):
        read_pair_reference(str(tmp_path / "a.pt"), pair)
    one = read_pair_reference(str(tmp_path / "a.pt"), pair, params=BOTH[:1])
    assert one.projections == ()  # not all that would be turned is there


def test_more_can_be_scored_than_projections(folder, pair):
    reference = read_pair_reference(f"hf:{folder}", pair, params="all")
    assert reference.tensors.keys() == dict(pair.model.named_parameters()).keys()
    mimic = GradMimic(pair.model, reference, params="all", align="none")
    assert mimic.aligned == "none"


def test_nearness_picks_the_alignment(folder, pair):
    here = open_pair_model(f"hf:{folder}")
    same = read_pair_reference(str(folder), here)
    assert pick_pair_alignment(same, here)[0] == "none"
    align, note = pick_pair_alignment(same, pair)
    assert align == "rotation"
    assert note.startswith("align: rotation, since the reference is from elsewhere: ")
    fixed = Reference(same.tensors, "test", same.projections, "it adds to its output")
    assert pick_pair_alignment(fixed, pair) == ("none", "align: none, since it adds to its output")
    alone = Reference(same.tensors, "test")
    align, note = pick_pair_alignment(alone, pair, params=BOTH[:1])
    assert align == "none"
    assert "what is scored cannot be turned: align='rotation' expects params= to name two" in note


def test_no_reference_without_weights(pair):
    with pytest.raises(ReferenceMismatchError, match="names an architecture without weights"):
        read_pair_reference("open_clip:ViT-B-32", pair)
    with pytest.raises(ReferenceMismatchError, match="'small' has fresh weights only"):
        read_pair_reference("small", pair)


def test_a_revision_is_of_the_hub_alone(folder, pair, monkeypatch):
    import gradmimic.run.clip.models as models

    asked = []

    def read(source, revision=None) -> tuple[Mapping[str, torch.Tensor], str]:
        asked.append((source, revision))
        return dict(pair.model.state_dict()), source

    monkeypatch.setattr(models, "read_weights", read)
    for source in ("owner/name@v1", "hf:owner/name@v1", "hf:owner/name", f"hf:{folder}"):
        read_pair_reference(source, pair)
    assert asked == [("owner/name", "v1"), ("owner/name", "v1"), ("owner/name", None),
                     (str(folder), None)]  # fmt: skip
