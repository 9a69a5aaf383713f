"""Optional libraries: imported where they are needed, and missed with a pip command."""

import importlib
from types import ModuleType

from gradmimic.errors import MissingExtraError


def import_extra(module: str, extra: str) -> ModuleType:
    """Import an optional library, or say how to install it.

    Args:
        module: the module's dotted name, e.g. ``"PIL.Image"``.
        extra: the extra of this package that brings it, e.g. ``"report"``.

    Returns:
        The imported module.

    Raises:
        MissingExtraError: the library is not installed.

    Example:
        >>> import_extra("json", "report").loads("[1]")
        [1]
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is not installed. Run: pip install 'gradmimic[{extra}]'"
        ) from error
