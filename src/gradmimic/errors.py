"""Every error gradmimic raises on purpose: what was expected, what came, where, and what to do."""

from collections.abc import Iterable


class GradMimicError(Exception):
    """Base of every error raised on purpose, so that one ``except`` catches them all."""


class ConfigError(GradMimicError, ValueError):
    """A run's configuration holds an unknown key, a wrong type or two keys that disagree."""


class DataError(GradMimicError, ValueError):
    """Input data cannot be read, or its parts do not fit each other."""


class ParameterError(GradMimicError, ValueError):
    """The scored parameters cannot be found in the model."""


class ReferenceMismatchError(GradMimicError, ValueError):
    """The reference's weights do not fit the model: keys missing, left over, or of other shapes."""


class DirectionError(GradMimicError, ValueError):
    """The direction θ_ref − θ is zero or not finite, so nothing can be projected on it."""


class AlignmentError(GradMimicError, ValueError):
    """A reference cannot be brought near the model's weights in the way that was asked for."""


class UselessReferenceError(GradMimicError, ValueError):
    """A reference says nothing about good and bad samples, in any alignment."""


class LossError(GradMimicError, ValueError):
    """The losses are not one finite number per sample that depends on the scored parameters."""


class UnsupportedOperationError(GradMimicError, NotImplementedError):
    """An operation of the model has no forward-mode derivative; the message says the way out."""


class UsageError(GradMimicError, RuntimeError):
    """Calls came in an order that cannot work, such as ``weigh`` without a forward pass."""


class LogError(GradMimicError, ValueError):
    """A score log cannot take these rows, or what lies on disk is not a readable log."""


class RankError(GradMimicError, RuntimeError):
    """Another rank of a distributed training is gone, or did not come to where this one is."""


class MissingExtraError(GradMimicError, ImportError):
    """An optional library is not installed; the message holds the pip command."""


def listed(names: Iterable[str], most: int = 8) -> str:
    """List the first few names for a message, and say how many more there are.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
