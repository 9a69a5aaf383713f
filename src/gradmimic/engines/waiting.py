"""No engine yet: a pass that is not scored, since too little is known of the reference."""

from torch import Tensor

from gradmimic.engines.base import Pass
from gradmimic.errors import UsageError


class Waiting(Pass):
    """The forward pass as it is."""

    def __init__(self) -> None:
        self.stand_ins: dict[str, Tensor] = {}

    def __enter__(self) -> "Waiting":
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def derivative(self, losses: Tensor) -> Tensor:
        """Refuse: there is none."""
        raise UsageError(f"This pass was not scored; it has no derivative of {len(losses)} losses.")

    def close(self) -> None:
        """Drop nothing."""
