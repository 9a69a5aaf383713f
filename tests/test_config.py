from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradmimic.errors import ConfigError
from gradmimic.run.config import RunConfig, load_config, save_config

LEAST = {"data": "x.npy", "trusted": "0:10"}


def write(folder, text, name="run.yaml"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_defaults_yield_to_the_file_and_the_file_to_flags(tmp_path):
    file = write(tmp_path, "data: x.npy\ntrusted: '0:10'\nepochs: 7\nlr: 0.5\n")
    config = load_config(file, {"lr": 0.25, "seed": None, "overwrite": True})
    assert (config.batch_size, config.epochs, config.lr) == (32, 7, 0.25)
    assert (config.seed, config.overwrite) == (0, True)


def test_toml_says_the_same_as_yaml(tmp_path):
    yaml = write(tmp_path, "data: x.npy\ntrusted: [3, a]\nlr: 1e-4\nreport: false\n")
    toml = write(
        tmp_path, 'data = "x.npy"\ntrusted = [3, "a"]\nlr = 1e-4\nreport = false\n', "run.toml"
    )
    assert load_config(yaml, {}) == load_config(toml, {})
    assert load_config(yaml, {}).trusted == (3, "a")
    assert load_config(yaml, {}).lr == 1e-4


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_is_passed_over(tmp_path, mark):
    assert load_config(write(tmp_path, mark + "data: x\ntrusted: t.npy\n"), {}).data == "x"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("epoch", "run.yaml holds the unknown key 'epoch'; did you mean 'epochs'?"),
        ("zzz", "unknown key 'zzz'; the keys are data, labels, .*, report"),
        ("1", "unknown key 1; the keys are"),
    ],
)
def test_unknown_keys(tmp_path, key, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, f"data: x\ntrusted: t.npy\n{key}: 3\n"), {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ...}, r"^There is no data: give --data PATH"),
        ({"trusted": ...}, r"^There is no reference: give --trusted .* or --reference"),
        ({"reference": "r.pt"}, "Both reference and trusted are given; expected one"),
        ({"noise": "symmetric"}, "noise is symmetric but noise_rate is 0.0; give both or neither"),
        ({"noise_rate": 0.1}, "noise is none but noise_rate is 0.1; give both or neither"),
        ({"test_labels": "y.npy"}, "test_labels is given without test; give both or neither"),
        (
            {"trusted": ..., "reference": "r.pt", "trusted_labels": "y.npy"},
            "trusted_labels is given without trusted",
        ),
        ({"params": "trunk.*"}, "asks for more than the head, but the trunk is frozen"),
        ({"epochs": 0}, "^epochs must be at least 1, got 0"),
        ({"reference_epochs": 0}, "reference_epochs must be at least 1, got 0"),
        ({"warmup": -1}, "warmup must be at least 0, got -1"),
        ({"weight_decay": float("nan")}, "weight_decay must be at least 0, got nan"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"lr": 0}, "lr must be positive, got 0"),
        ({"temperature": float("nan")}, "temperature must be positive, got nan"),
        ({"epochs": "two"}, r"epochs: Input should be a valid integer.* \(got 'two'\)"),
        ({"epochs": 1.5}, r"epochs: .*\(got 1.5\)"),
        ({"noise": "uniform"}, r"noise: Input should be 'none', 'symmetric' or 'pair'"),
        ({"data": 3}, r"data: Input should be a valid string \(got 3\)"),
        ({"trusted": {"a": 1}}, "trusted"),
    ],
)
def test_values_that_cannot_be(changes, message):
    values = {key: value for key, value in {**LEAST, **changes}.items() if value is not ...}
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(None, values)
    assert "Value error" not in str(caught.value)  # pydantic's wrapping of our own words


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.yaml", "data: [x", "run.yaml is not valid YAML"),
        ("run.yaml", "", "run.yaml holds NoneType; expected keys and values"),
        ("run.yml", "- data", "run.yml holds list; expected keys and values"),
        ("run.yaml", "data: !!python/object/apply:os.getcwd []", "run.yaml is not valid YAML"),
        ("run.toml", "data = x", "run.toml is not valid TOML"),
        ("run.json", "{}", "run.json ends in '.json'; expected .yaml, .yml or .toml"),
    ],
)
def test_malformed_files(tmp_path, name, text, message):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text, name), LEAST)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"Cannot read the configuration .*none.yaml"):
        load_config(tmp_path / "none.yaml", LEAST)
    (tmp_path / "latin.yaml").write_bytes(b"data: caf\xe9")
    with pytest.raises(ConfigError, match=r"Cannot read the configuration .*latin.yaml"):
        load_config(tmp_path / "latin.yaml", LEAST)


@given(
    text=st.text(min_size=1),
    ids=st.lists(st.integers() | st.text(), min_size=1),
    rate=st.floats(min_value=0, exclude_min=True),
    number=st.integers(min_value=1),
)
def test_a_saved_configuration_loads_again_to_the_same(tmp_path_factory, text, ids, rate, number):
    config = RunConfig(
        data=text, trusted=tuple(ids), lr=rate, temperature=float("inf"), epochs=number
    )
    file = tmp_path_factory.getbasetemp() / "saved.yaml"
    save_config(config, file)
    assert load_config(file, {}) == config


def test_every_key_is_saved(tmp_path):
    config = replace(RunConfig(**LEAST), overwrite=True, report=False, trunk="trained")
    save_config(config, tmp_path / "saved.yaml")
    text = (tmp_path / "saved.yaml").read_text()
    assert [line.split(":")[0] for line in text.splitlines()] == [f.name for f in fields(config)]


def test_keys_are_grouped_and_explained():
    for key in fields(RunConfig):
        assert key.metadata["group"]
        assert key.metadata["help"].endswith(".")
    assert isinstance(load_config(None, LEAST).out, str)
    assert Path(load_config(None, LEAST).out).parts[0] == "runs"
