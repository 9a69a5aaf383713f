"""Names of what can be logged beside mimic, as ``gradmimic.scorers`` names it.

Those need torch; this is read to build ``gradmimic run --help``, so it imports nothing heavy.
"""

from collections.abc import Sequence

from gradmimic.errors import ConfigError

IN_TRAINING = (
    "loss", "reference_loss", "rho", "el2n", "grand", "margin", "self_confidence", "agra",
    "grad_match", "gwa", "influence", "mimic_cosine", "mimic_adam",
)  # fmt: skip
# Of a checkpoint: no optimizer, no trusted samples, and batches of several processes in any order.
OFFLINE = tuple(name for name in IN_TRAINING if name not in ("agra", "influence", "mimic_adam"))


def names_of(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return names that came with commas between, or as a list.

    Example:
        >>> names_of("loss, margin"), names_of(None)
        (('loss', 'margin'), ())
    """
    if isinstance(given, str):
        return tuple(name.strip() for name in given.split(",") if name.strip())
    return tuple(given or ())


def check_names(names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names of no scorer, and names that come twice.

    Raises:
        ConfigError: naming the first.
    """
    for name in names:
        if name not in known:
            raise ConfigError(f"There is no scorer {name!r} here; expected {', '.join(known)}.")
        if names.count(name) > 1:
            raise ConfigError(f"The scorer {name!r} comes twice; name each once.")


def toward_weights(names: Sequence[str]) -> list[str]:
    """Return those that compare the head's weights with the reference's."""
    return [name for name in names if name.startswith("mimic_")]
