"""Two ranks give what one process gives on their batches put together."""

from functools import partial
from unittest.mock import patch

import on_ranks
import pytest
import torch

import gradmimic.overtaken
import gradmimic.trial
from gradmimic import ScoreLog, select

CALIBRATED = {"rate": 1.0}

# name -> what the training is; each runs on two ranks, and in this process on all samples
TRAININGS = {
    "plain": {},
    "inner model": {"given": "inner"},
    "all parameters": {"options": {"params": "all"}},
    "oracle": {"options": {"engine": "oracle"}},
    "ghost": {"options": {"params": "all", "engine": "ghost"}},
    "secant": {"options": {"params": "all", "engine": "secant"}},
    "scored only": {"options": {"reweight": "scored", "temperature": 0.2}},
    "warm-up": {"options": {"warmup": 2}},
    "auto temperature": {"options": {"temperature": "auto"}},
    "posterior": {"steps": 8, "canaries": CALIBRATED, "options": {"weighting": "posterior"}},
    "trained canaries": {"canaries": CALIBRATED | {"trained": True}},
    "unused": {"net": {"unused": True}, "ddp": {"find_unused_parameters": True}},
    "unused, inner": {
        "net": {"unused": True}, "ddp": {"find_unused_parameters": True}, "given": "inner",
        "options": {"engine": "oracle"},
    },
    "unused, all parameters": {
        "net": {"unused": True}, "ddp": {"find_unused_parameters": True},
        "options": {"params": "all"},
    },
    "static graph, all parameters": {
        "ddp": {"static_graph": True}, "options": {"params": "all"},
    },
    "accumulation, all parameters": {"accumulate": 2, "options": {"params": "all"}},
    "joined, all parameters": {"steps": 5, "joined": (2, 3), "options": {"params": "all"}},
    "static graph": {"ddp": {"static_graph": True}},
    "static graph, inner, oracle": {
        "ddp": {"static_graph": True}, "given": "inner", "options": {"engine": "oracle"},
    },
    "static graph, twice": {
        "ddp": {"static_graph": True},
        "options": {"params": "all", "engine": "ghost", "backward": "twice"},
    },
    "static graph, scored only": {
        "ddp": {"static_graph": True}, "options": {"reweight": "scored", "temperature": 0.2},
    },
    "static graph, outputs": {
        "ddp": {"static_graph": True}, "known": True, "options": {"align": "outputs"},
    },
    "accumulation": {"accumulate": 2},
    "head elsewhere": {"kind": on_ranks.Elsewhere},
    "transport": {"steps": 12, "known": True, "options": {"align": "transport"}},
    "transport, unknown": {"steps": 12, "known": False, "options": {"align": "transport"}},
    "transport, module": {"steps": 12, "options": {"align": "transport"}},
    "outputs, unknown": {"known": False, "canaries": CALIBRATED, "options": {"align": "outputs"}},
    "rotation": {"kind": on_ranks.Twofold, "options": {"align": "rotation", "params": "all"}},
    "auto": {"steps": 8, "canaries": CALIBRATED, "options": {"align": "auto"}},
    "overtaken": {"steps": 10, "known": True, "canaries": CALIBRATED,
                  "options": {"align": "outputs"}},
    "joined": {"steps": 8, "joined": (3, 4), "canaries": CALIBRATED,
               "options": {"weighting": "posterior"}},
    "joined, auto temperature": {"steps": 6, "joined": (0, 1), "canaries": CALIBRATED,
                                 "options": {"temperature": "auto"}},
}  # fmt: skip


def training(name, rank, folder, size=2):
    """Run one of TRAININGS, with fewer canaries than usual before they decide."""
    few = {"overtaken": (30, 5, 200), "auto": (200, 100, 20)}.get(name, (200, 100, 200))
    with (
        patch.multiple(gradmimic.overtaken, BLOCK=few[0], FADE=few[1]),
        patch.object(gradmimic.trial, "ENOUGH", few[2]),
    ):
        return on_ranks.train(rank, size, log=folder / name, **TRAININGS[name])


CASES = {name: partial(training, name) for name in TRAININGS}


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.filterwarnings("ignore:params='head'")
def test_two_ranks_are_one_process_on_the_whole_batch(two_ranks, tmp_path, name):
    found, folder = two_ranks
    a, b = (told[f"test_distributed.{name}"] for told in found)
    one = training(name, 0, tmp_path, size=1)
    digits = 5 if "transport" in name else 6  # the ridge's statistics are float32
    gone = TRAININGS[name].get("joined", ())
    there = iter(b["steps"])
    pairs = [(here, here if step in gone else next(there)) for step, here in enumerate(a["steps"])]
    assert next(there, None) is None
    for mine, (here, there) in zip(one["steps"], pairs, strict=True):
        if here is there:  # rank 1 had no batch
            there = {key: here[key][:0] for key in ("scores", "weights", "ids")}
            there |= {"loss": torch.tensor(0.0), "gradients": here["gradients"]}
        for key in ("scores", "weights", "ids"):
            if mine[key] is not None:
                close(torch.cat([here[key], there[key]]), mine[key], digits)
        close((here["loss"] + there["loss"]) / 2, mine["loss"], digits)
        for key, gradient in mine.get("gradients", {}).items():
            close(here["gradients"][key], gradient, digits)
            close(there["gradients"][key], gradient, digits)
    same_log(folder / name, tmp_path / name, digits)
    assert one["aligned"] != "auto"
    assert (one["overtaken"] is not None) == (name == "overtaken")
    for told in (a, b):
        assert [told[key] for key in ("aligned", "overtaken", "step")] == [
            one[key] for key in ("aligned", "overtaken", "step")
        ]


def same_log(two, one, digits):
    """Each rank wrote its own parts; together they are the log of one process, row for row."""
    logs = [ScoreLog.read(folder).scan().to_pylist() for folder in (two, one)]
    assert len(logs[0]) == len(logs[1])
    for rows in logs:
        rows.sort(key=lambda row: (row["step"], row["canary"] or "", row["sample_id"]))
    for here, there in zip(*logs, strict=True):
        for column, value in there.items():
            if column in ("score", "weight", "loss"):
                assert here[column] == pytest.approx(value, rel=10**-digits, abs=10**-digits)
            elif column != "rank":
                assert here[column] == value
    assert {row["rank"] for row in logs[0]} == {0, 1}
    runs = [ScoreLog.read(folder).run for folder in (two, one)]
    assert [event["event"] for event in runs[0]["events"]] == [
        event["event"] for event in runs[1]["events"]
    ]
    assert runs[0]["direction_norm"] == pytest.approx(runs[1]["direction_norm"], rel=1e-5)
    assert not list(two.glob(".*"))


@pytest.mark.parametrize("name", ["plain", "outputs, unknown", "trained canaries"])
def test_stage_2_selects_what_it_selects_after_one_process(two_ranks, tmp_path, name):
    _, folder = two_ranks
    training(name, 0, tmp_path, size=1)
    two, one = (select(path / name).table.to_pydict() for path in (folder, tmp_path))
    assert two["keep"] == one["keep"]
    assert two["sample_id"] == one["sample_id"]
    assert two["score"] == pytest.approx(one["score"], rel=1e-6)


def close(actual, expected, digits=6):
    torch.testing.assert_close(actual, expected, rtol=10**-digits, atol=10**-digits)
