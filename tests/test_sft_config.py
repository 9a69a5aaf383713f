"""The keys of ``gradmimic run --task sft``."""

import pytest

from gradmimic.errors import ConfigError
from gradmimic.run.config import load_task
from gradmimic.run.keys import save_keys
from gradmimic.run.sft.config import SftConfig

GIVEN = {"task": "sft", "data": "d.jsonl", "model": "base", "reference": "better"}


def test_data_and_two_models_are_enough():
    config = load_task(None, GIVEN)
    assert isinstance(config, SftConfig)
    assert (config.params, config.tokens, config.canaries, config.rule) == (
        "head",
        True,
        "scored",
        "auto",
    )


def test_a_saved_configuration_is_the_same_again(tmp_path):
    config = load_task(None, {**GIVEN, "max_length": 9, "canary_rate": 0.5, "rule": "mixture"})
    save_keys(config, tmp_path / "config.yaml")
    assert load_task(tmp_path / "config.yaml", {}) == config


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"data": ""}, "There is no data: give --data PATH"),
        ({"model": ""}, "There is no model: give --model"),
        ({"reference": ""}, "There is no reference: give --reference, a better sibling"),
        ({"canaries": "off", "rule": "calibrated"}, "rule is calibrated but canaries is off"),
        ({"canaries": "off", "aggregate": "stacked"}, "stacked but canaries is off"),
        ({"reference_loss": False, "aggregate": "stacked"}, "stacked but reference_loss is off"),
        ({"canary_rate": 0.0}, r"canary_rate must be in \(0, 1\], got 0.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_length": 1}, "max_length must be at least 2, got 1"),
        ({"dtype": "int8"}, "dtype: Input should be 'float32', 'bfloat16' or 'float16'"),
        ({"epochs": 3}, "the key 'epochs' is for the task labels or clip, but the task is sft"),
        ({"modle": "x"}, "unknown key 'modle'; did you mean 'model'?"),
    ],
)
def test_what_cannot_be_meant_is_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        load_task(None, {**GIVEN, **keys})
