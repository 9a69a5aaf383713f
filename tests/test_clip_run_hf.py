"""Whole runs of Hugging Face's two-tower models, with references from elsewhere."""

import hf_towers
import pytest
import torch
from clip_runs import run_pairs, write_pools

from gradmimic.errors import AlignmentError, DirectionError

pytest.importorskip("transformers", reason="needs the extra 'hub'")
pytest.importorskip("PIL", reason="needs the extra 'images'")

READ = {"trusted": ..., "reference_epochs": ..., "epochs": 1, "image_size": ...}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hf")
    write_pools(path)
    for seed, (name, kind, space) in enumerate(
        [("clip", "clip", 10), ("wider", "clip", 14), ("siglip", "siglip", 10)]
    ):
        torch.manual_seed(seed)
        (path / name).mkdir()
        hf_towers.save(path / name, kind, space=space)
    return path


def weights(out, name):
    return torch.load(out / f"{name}.pt", weights_only=True)


def test_a_reference_of_another_width_is_turned(folder, tmp_path):
    metrics, _ = run_pairs(
        folder, **READ, model=f"hf:{folder}/clip", reference=f"hf:{folder}/wider",
        out=str(tmp_path / "run"), start="pretrained",
    )  # fmt: skip
    assert metrics["align"] == "rotation"
    assert metrics["reference"]["retrieval"]["R@10"] > 0  # its own width, measured by itself
    assert metrics["auroc_of"].keys() == {"mimic", "clip"}
    assert float(weights(tmp_path / "run", "plain")["logit_scale"]) <= 4.6052


def test_from_scratch_it_is_transported(folder, tmp_path):
    metrics, table = run_pairs(
        folder, **{**READ, "epochs": 3}, model=f"hf:{folder}/clip",
        reference=f"hf:{folder}/wider", out=str(tmp_path / "run"),
    )  # fmt: skip
    assert metrics["align"] == "transport"
    assert len(table) == metrics["samples"]


def test_a_tower_is_locked_and_training_goes_on(folder, tmp_path):
    keys = {"model": f"hf:{folder}/clip", "start": "pretrained", "lock": "image", "lr": 0.01}
    out = {"out": str(tmp_path / "run"), "image_size": ...}
    with pytest.raises(DirectionError, match="The direction is zero: the reference"):
        run_pairs(folder, **{**keys, **READ, **out}, reference=f"hf:{folder}/clip")
    assert not (tmp_path / "run").exists()
    run_pairs(folder, **keys, **out, epochs=1, workers=1)
    before = hf_towers.transformers.CLIPModel.from_pretrained(folder / "clip").state_dict()
    after = weights(tmp_path / "run", "reweighted")
    for name, own in before.items():
        moved = not torch.equal(own, after[name])
        if name.startswith(("vision_model", "visual_projection")):
            assert not moved, name
        elif name.startswith("text_projection"):
            assert moved, name


def test_siglip_is_trained_with_its_own_loss_and_is_not_turned(folder, tmp_path):
    keys = {**READ, "trusted": str(folder / "trusted.tar"), "reference_epochs": 1}
    model = {"model": f"hf:{folder}/siglip", "start": "pretrained"}
    metrics, _ = run_pairs(folder, **keys, **model, out=str(tmp_path / "run"))
    assert metrics["align"] == "none"
    assert metrics["plain"]["loss"][0] > 0
    with pytest.raises(AlignmentError, match="cannot turn this model"):
        run_pairs(folder, **keys, **model, align="rotation", out=str(tmp_path / "turned"))
