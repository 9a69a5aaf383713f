"""What ``gradmimic score --task clip`` takes and refuses: checkpoints, references, flags."""

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
pytest.importorskip("webdataset", reason="needs the extra 'webdataset'")

from test_cli_score import command  # noqa: F401  a fixture
from test_clip_score import (
    EACH,
    SHARDS,
    config,
    flags,
    folder,  # noqa: F401
    made,  # noqa: F401
    opened,
    rows_of,
)
from web_pools import SIZE, train_small

from gradmimic import ScoreLog
from gradmimic.errors import ConfigError
from gradmimic.run.clip.score import score_pairs


def test_of_several_forms_of_checkpoints(folder, command):  # noqa: F811
    """A bare file needs to be told what model it is of; a run's own folder tells it."""
    command.refused(
        r"step-4\.pt is a file of weights, which does not say what model they are of, and there is "
        r"no config\.yaml.*Give --model: small, hf:",
        *flags("steps/step-4.pt", model=None),
    )
    (folder / "steps/config.yaml").write_text(f"task: clip\nmodel: small\nimage_size: {SIZE}\n")
    status, printed = command(*flags("steps", model=None, image_size=None))
    assert status == 0, printed.err
    score_pairs(config(out="told"))
    assert rows_of("scores").equals(rows_of("told"))
    names = ScoreLog.read("scores/log").run["config"]["given"]["checkpoints"]
    assert names == ["steps/step-4.pt", "steps/step-12.pt"]


def test_a_reference_of_projections_alone_gives_no_clip_score(folder):  # noqa: F811
    state = torch.load("better.pt", weights_only=True)
    torch.save({name: state[name] for name in state if "projection" in name}, "head.pt")
    done = score_pairs(config(reference="head.pt", out="head"))
    assert set(done.apart) == {"mimic", "own"}
    whole = score_pairs(config(out="whole"))
    assert set(whole.apart) == {"mimic", "own", "clip"}
    left_out = score_pairs(config(out="less", clip_score=False))
    assert set(left_out.apart) == {"mimic", "own"}
    rows = {out: rows_of(out) for out in ("head", "whole", "less")}
    assert rows["head"].equals(rows["less"])
    assert rows["whole"].filter(pc.field("scorer") != "clip").equals(rows["less"])


def telling(done, wrong, scorer="mimic"):
    """How well the mean score tells pairs from those that were swapped."""
    rows = ScoreLog.read(done.log).scan().filter(pc.field("canary").is_null())
    own = (
        rows.filter(pc.field("scorer") == scorer)
        .group_by("sample_id")
        .aggregate([("score", "mean")])
    )
    bad = np.isin(own["sample_id"].to_pylist(), list(wrong))
    scores = own["score_mean"].to_numpy()
    return (scores[~bad][:, None] > scores[bad]).mean()


def test_a_reference_from_elsewhere_is_transported(folder, made):  # noqa: F811
    """Its layers below the projections are its own, so turning its projections makes it worse."""
    train_small(folder / "far.pt", made[0] / "clean", 40, seed=7)
    done = score_pairs(config(reference="far.pt", out="auto"))
    assert done.notes[0].startswith("Align: transport, since the reference's layers below")
    assert len(done.notes) == 1
    assert telling(done, made[1]) > 0.9
    turned = score_pairs(config(reference="far.pt", out="turned", align="rotation"))
    assert telling(turned, made[1]) < telling(done, made[1]) - 0.2
    assert "so they say nothing here" in turned.notes[-1]
    assert set(score_pairs(config(reference="far.pt", out="less", clip_score=False)).apart) == {
        "mimic", "own",
    }  # fmt: skip
    assert rows_of("less").equals(rows_of("auto").filter(pc.field("scorer") != "clip"))


def test_projections_on_the_same_towers_are_turned(folder, made):  # noqa: F811
    pair = opened("steps/step-4.pt")
    turn = torch.linalg.qr(torch.randn(128, 128))[0]
    state = torch.load("better.pt", weights_only=True)
    below = {n: v for n, v in pair.model.state_dict().items() if n not in pair.scored()}
    torch.save(state | below | {name: turn @ state[name] for name in pair.scored()}, "turned.pt")
    torch.save(state | below, "straight.pt")
    found = {}
    for name in ("turned", "straight"):
        done = score_pairs(config(["steps/step-4.pt"], reference=f"{name}.pt", out=name,
                                  align="auto" if name == "turned" else "rotation"))  # fmt: skip
        found[name] = rows_of(name).filter(pc.field("scorer") == "mimic")["score"].to_numpy()
        if name == "turned":
            assert done.notes[0].startswith("Align: rotation, since the reference is from elsew")
    np.testing.assert_allclose(found["turned"], found["straight"], atol=1e-3)


def test_what_cannot_be_transported_is_told(folder, command):  # noqa: F811
    state = torch.load("better.pt", weights_only=True)
    torch.save({name: state[name] for name in state if "projection" in name}, "head.pt")
    command.refused(
        "align='transport' is not possible: the reference has no towers of its own",
        *flags("steps", reference="head.pt", align="transport"),
    )
    command.refused("transport.*takes both last projections",
                    *flags("steps", params="text", align="transport"))  # fmt: skip
    train_small(folder / "far.pt", folder / "pool", 1, seed=7)
    done = score_pairs(config(reference="far.pt", params="text"))
    assert "rotation cannot mend, but transport is not possible: it takes both" in done.notes[0]


def test_other_work_is_refused_and_replaced_where_asked(folder, command):  # noqa: F811
    assert command(*flags("steps"))[0] == 0
    rows = rows_of("scores")
    match = "scores of another run: batch_size 16 instead of 8"
    command.refused(match, *flags("steps", batch_size=8))
    command.refused("another run: other checkpoints", *flags("steps/step-4.pt"))
    command.refused("another run: params both instead of text", *flags("steps", params="text"))
    command.refused("another run: other data", *flags("steps", data="pool/{00000..00003}.tar"))
    command.refused("another run: clip_score True instead of False", *flags("steps"),
                    "--no-clip-score")  # fmt: skip
    torch.save(opened("steps/step-4.pt").model.state_dict(), "other.pt")
    command.refused("another run: other reference", *flags("steps", reference="other.pt",
                    align="rotation"))  # fmt: skip
    state = torch.load("better.pt", weights_only=True)
    name = next(name for name in state if "projection" not in name)
    torch.save({**state, name: state[name] + 1}, "towers.pt")
    command.refused("another run: other reference towers", *flags("steps", reference="towers.pt"))
    assert rows_of("scores").equals(rows)
    (folder / "pool").rename(folder / "elsewhere")
    status, printed = command(*flags("steps", data="elsewhere"))
    assert (status, "there before 170" in " ".join(printed.out.split())) == (0, True)
    assert command(*flags("steps", batch_size=8, data="elsewhere"), "--overwrite")[0] == 0
    assert not rows_of("scores").equals(rows)


def test_what_cannot_be_scored_is_told(folder, command):  # noqa: F811
    command.refused("no file or folder none.tar", *flags("steps", data="none.tar"))
    command.refused(r"nothing\*\.pt matches no checkpoint", *flags("nothing*.pt"))
    command.refused("model='tiny' is unknown; expected 'small'", *flags("steps", model="tiny"))
    half = (folder / "better.pt").read_bytes()[:5000]
    (folder / "half.pt").write_bytes(half)
    command.refused("half.pt is damaged or truncated", *flags("steps", "half.pt"))
    command.refused("half.pt is damaged or truncated", *flags("steps", reference="half.pt"))
    torch.save({"weight": torch.zeros(2)}, "odd.pt")
    command.refused(r"weights at odd\.pt are not those of odd\.pt; missing", *flags("odd.pt"))
    command.refused(
        r"the reference odd\.pt lacks 2 of the 2 weights", *flags("steps", reference="odd.pt")
    )
    command.refused(
        r"better\.pt, epoch 2 of the log: The direction is zero", *flags("steps", "better.pt")
    )
    command.refused("no parameter|matches no", *flags("steps", params="nothing.*"))
    command.refused("none of the first samples of pool has an id called 'other'",
                    *flags("steps", ids="other"))  # fmt: skip


def test_flags_of_the_other_task_are_told(folder, command, monkeypatch):  # noqa: F811
    command.refused(
        "--labels is for the task labels, but the task is clip. Leave it out, or give --task labe",
        *flags("steps", labels="y.npy"),
    )
    command.refused(
        "--clip-score is for the task clip, but the task is labels",
        "score",
        "steps",
        "--clip-score",
    )
    command.refused("batch_size must be at least 2, got 1: a contrastive loss needs another pair",
                    *flags("steps", batch_size=1))  # fmt: skip
    command.refused(r"canary_rate must be in \(0, 1\], got 2.0", *flags("steps", canary_rate=2.0))
    command.refused("There is no data: give --data", *flags("steps", data=None))
    command.refused("align", *flags("steps", align="shift"))
    monkeypatch.setenv("COLUMNS", "160")
    status, printed = command("score", "--help")
    assert status == 0
    for text in ("--task", "Input (task clip)", "--no-clip-score", "hf:… (a folder or hub id)"):
        assert text in printed.out


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_models_of_transformers(folder, kind):  # noqa: F811
    """Given as a folder or as hf:…; what cannot be turned is taken as it is, and that is said."""
    pytest.importorskip("transformers")
    import hf_towers

    for seed in range(3):
        torch.manual_seed(seed)
        (folder / f"hf{seed}").mkdir()
        hf_towers.save(folder / f"hf{seed}", kind)
    given = {"model": None, "image_size": None, "batch_size": 8}
    done = score_pairs(config(["hf0", "hf:hf1"], reference="hf:hf2", **given))
    assert (done.samples, done.visits) == (SHARDS * EACH, 2 * SHARDS * EACH)
    assert set(done.apart) == {"mimic", "own", "clip"}
    assert ("transport" if kind == "clip" else "none") in done.notes[0]
    refused = "hf2 is of another architecture than hf:hf0: .* differ. Expected the checkpoints of"
    hf_towers.save(folder / "hf2", kind, width=8)
    with pytest.raises(ConfigError, match=refused):
        score_pairs(config(["hf0", "hf2"], reference="hf1", out="other", **given))
    given |= {"engine": "secant", "params": "all", "reference": "hf1"}
    with pytest.raises(ConfigError, match="engine secant .* logit_scale.* are read beside"):
        score_pairs(config(["hf0"], out="another", **given))
