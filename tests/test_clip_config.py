from dataclasses import fields

import pytest

from gradmimic.errors import ConfigError
from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.config import TASKS, RunConfig, load_config, load_task, save_config

LEAST = {"task": "clip", "data": "pool", "trusted": "0:10"}


def test_the_task_decides_which_keys_there_are(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("data: x\ntrusted: '0:10'\n")
    assert isinstance(load_task(file, {}), RunConfig)
    assert isinstance(load_task(file, {"task": "clip"}), ClipConfig)
    file.write_text("task: clip\ndata: x\ntrusted: '0:10'\nmodel: hf:owner/name\n")
    assert load_task(file, {"lr": 0.5}).model == "hf:owner/name"
    with pytest.raises(ConfigError, match="The task is clip, but this works with the task labels"):
        load_config(file, {})


@pytest.mark.parametrize(
    ("task", "key", "value", "message"),
    [
        ("clip", "labels", "y.npy", "'labels' is for the task labels, but the task is clip"),
        (
            "labels",
            "lock",
            "image",
            "'lock' is for the task clip, but the task is labels",
        ),
        ("clip", "epoch", 3, "unknown key 'epoch'; did you mean 'epochs'?"),
        ("llm", "epochs", 3, "There is no task 'llm'; the tasks are labels, clip, sft"),
        (["clip"], "epochs", 3, r"There is no task \['clip'\]"),
    ],
)
def test_keys_of_another_task(tmp_path, task, key, value, message):
    with pytest.raises(ConfigError, match=message):
        load_task(None, {**LEAST, "task": task, key: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ...}, "^There is no data"),
        (
            {"trusted": ...},
            r"^There is no reference: give --trusted .*hf:ID, or open_clip:NAME/TAG",
        ),
        ({"reference": "r.pt"}, "Both reference and trusted are given"),
        (
            {"trusted": ..., "reference": "r.pt", "reference_start": "other"},
            "reference_start is given without trusted",
        ),
        (
            {"trusted": ..., "reference": "r.pt", "reference_epochs": 3},
            "reference_epochs is given without trusted",
        ),
        ({"templates": ["a {}"]}, "templates is given without zero_shot"),
        ({"templates": ["a cat"], "zero_shot": "x"}, "templates holds 'a cat'; expected sentences"),
        ({"templates": [], "zero_shot": "x"}, "templates holds ''; expected sentences with {}"),
        ({"noise_rate": 1.5}, r"noise_rate must be in \[0, 1\], got 1.5"),
        ({"noise_rate": float("nan")}, "noise_rate must be in"),
        ({"lock": "image"}, "lock is image, but start is scratch"),
        (
            {"lock": "image", "start": "pretrained", "model": "hf:x", "params": "both"},
            "params is both, but the image tower is locked",
        ),
        ({"model": "small", "start": "pretrained"}, "model is small, which has no pretrained"),
        ({"start": "x.pt", "reference_start": "other"}, "reference_start is other, but start is"),
        ({"weighting": "posterior", "canaries": "off"}, "it needs canaries"),
        ({"weighting": "posterior", "temperature": 0.5}, "which knows no temperature"),
        ({"rule": "calibrated", "canaries": "off"}, "rule is calibrated but canaries is off"),
        ({"aggregate": "stacked", "canaries": "off"}, "aggregate is stacked but canaries is off"),
        ({"canary_rate": 0}, r"canary_rate must be in \(0, 1\], got 0"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1: a contrastive loss needs"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"lr": -1}, "lr must be positive"),
        ({"align": "outputs"}, "align: Input should be 'auto', 'none', 'rotation' or 'tr"),
        ({"lock": "both"}, "lock: Input should be 'image' or 'text'"),
    ],
)
def test_values_that_cannot_be(changes, message):
    values = {key: value for key, value in {**LEAST, **changes}.items() if value is not ...}
    with pytest.raises(ConfigError, match=message) as caught:
        load_task(None, values)
    assert "Value error" not in str(caught.value)


def test_a_saved_configuration_loads_again_to_the_same(tmp_path):
    config = ClipConfig(
        data="pool/{00..03}.tar",
        trusted=(3, "x"),
        zero_shot="z",
        templates=("a {}.", "ein {}."),
        temperature=float("inf"),
    )
    save_config(config, tmp_path / "saved.yaml")
    assert load_task(tmp_path / "saved.yaml", {}) == config
    lines = (tmp_path / "saved.yaml").read_text(encoding="utf-8").splitlines()
    keys = [line.split(":")[0] for line in lines if not line.startswith(("-", " "))]
    assert keys == [field.name for field in fields(ClipConfig)]


def test_what_is_scored_by_default():
    assert ClipConfig(**LEAST).scored == "both"
    more = {"model": "hf:x", "start": "pretrained"}
    assert ClipConfig(**LEAST, **more, lock="image").scored == "text"
    assert ClipConfig(**LEAST, **more, lock="text").scored == "image"
    assert ClipConfig(**LEAST, params="*.bias").scored == "*.bias"


def test_keys_are_grouped_and_explained():
    for kind in TASKS.values():
        for key in fields(kind):
            assert key.metadata["group"]
            assert key.metadata["help"].endswith(".")
