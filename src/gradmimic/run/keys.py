"""Keys of a configuration, whatever the task: how they are declared, read, checked and saved.

This module is read to build ``gradmimic run --help``, so it imports nothing heavy.
"""

import importlib
import math
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, TypeVar

from gradmimic.atomic import atomic_write
from gradmimic.errors import ConfigError

Config = TypeVar("Config")
CONFIG = "config.yaml"  # in the folder of a run
TASK = (
    "What to do: train a classifier on labels, train a contrastive model (clip), or filter "
    "instructions for supervised fine-tuning (sft)."
)


def key(default: Any, group: str, text: str) -> Any:
    """Declare a key: a field of a dataclass with its place in the help, and what it says there."""
    return field(default=default, metadata={"group": group, "help": text})


def check_least(config: object, **least: float) -> None:
    """Refuse numbers below a limit; keys that are None are left out.

    Raises:
        ConfigError: one is, or is no number.
    """
    for name, limit in least.items():
        if (value := getattr(config, name)) is not None and not value >= limit:
            raise ConfigError(f"{name} must be at least {limit}, got {value}.")


def check_positive(config: object, *names: str) -> None:
    """Refuse numbers that are not above 0; keys that are None or text are left out.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, str | None) and not value > 0:
            raise ConfigError(f"{name} must be positive, got {value}.")


def check_rate(config: Any) -> None:
    """Refuse a share of canaries that is none.

    Raises:
        ConfigError: it is not in (0, 1].
    """
    rate = config.canary_rate
    if rate is not None and not 0 < rate <= 1:
        raise ConfigError(f"canary_rate must be in (0, 1], got {rate}.")


def check_canaries(config: Any, weights: str) -> None:
    """Refuse what asks canaries where there are none, and a temperature that is not used.

    Args:
        config: of a training.
        weights: how scores become batch weights, by default or as given.

    Raises:
        ConfigError: keys disagree, or the share of canaries is none.
    """
    if weights == "posterior" and config.canaries == "off":
        raise ConfigError("weighting is posterior but canaries is off; it needs canaries.")
    if config.weighting == "posterior" and config.temperature is not None:
        raise ConfigError("weighting is posterior, which knows no temperature; leave one out.")
    if config.rule == "calibrated" and config.canaries == "off":
        raise ConfigError("rule is calibrated but canaries is off; it needs canaries.")
    check_rate(config)


def as_plain(config: Any) -> dict[str, Any]:
    """Return the keys and values as plain data, which YAML and JSON can hold."""
    values = asdict(config)
    for name, value in values.items():
        if isinstance(value, tuple):
            values[name] = list(value)
        elif isinstance(value, float) and math.isinf(value):
            values[name] = "inf"  # JSON knows no infinity
    return values


def resolve(kind: type[Config], values: Mapping[str, Any], where: str) -> Config:
    """Make a checked configuration of keys and values.

    Args:
        kind: the dataclass of the task's keys.
        values: what was given; the others are at their defaults.
        where: the values' source, for messages.

    Raises:
        ConfigError: a value has another type, or keys disagree.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        own = error.errors()[0].get("ctx", {}).get("error")
        if isinstance(own, ConfigError):  # says it better than what pydantic makes of it
            raise own from None
        problems = [
            f"{'.'.join(str(part) for part in item['loc']) or 'it'}: {item['msg']} "
            f"(got {item['input']!r})"
            for item in error.errors()
        ]
        raise ConfigError(
            f"The configuration from {where} is not valid. {'; '.join(problems)}"
        ) from error


def save_keys(config: Any, file: Path) -> None:
    """Write a resolved configuration as YAML, ready to be run again."""
    import yaml

    text = yaml.safe_dump(as_plain(config), sort_keys=False, allow_unicode=True)
    with atomic_write(file) as stream:
        stream.write(text.encode())


def begin_folder(config: Any, out: Path, earlier: Iterable[Path]) -> None:
    """Make a run's folder, without what is to be replaced, and save the configuration in it.

    Raises:
        ConfigError: it cannot be written to.
    """
    try:
        for path in earlier:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        out.mkdir(parents=True, exist_ok=True)
        save_keys(config, out / CONFIG)
    except OSError as error:
        raise ConfigError(f"Cannot write to the output folder {out}: {error}") from error


def read_keys(file: Path) -> dict[str, Any]:
    """Read the keys and values of a YAML or TOML file.

    Raises:
        ConfigError: the file is missing or malformed.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Cannot read the configuration {file}: {error}") from error
    if file.suffix == ".toml":
        toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
        try:
            keys: dict[str, Any] = toml.loads(text)
        except toml.TOMLDecodeError as error:
            raise ConfigError(f"{file} is not valid TOML: {error}") from error
        return keys
    if file.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"{file} ends in {file.suffix!r}; expected .yaml, .yml or .toml.")
    import yaml

    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{file} holds {type(content).__name__}; expected keys and values.")
    return content
