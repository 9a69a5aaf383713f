"""Which module is the head? A guess from the names, which the first forward pass settles."""

import warnings

from torch import nn

from gradmimic.direction import LastUsed, Params, find_head


class GuessedHead:
    """The last module that holds parameters, until a pass tells which one is used last.

    Args:
        model: the model being trained.
        params: the scored parameters; there is a guess only where they are ``"head"``.

    Attributes:
        found: the module that turned out to be the head, where the guess was another one.
    """

    LEARNED = ("found",)

    def __init__(self, model: nn.Module, params: Params) -> None:
        self._model = model
        self._guess = find_head(model) if params == "head" else None
        self._watch: LastUsed | None = None
        self.found: str | None = None

    def watch(self) -> None:
        """See the model's forward pass, while the head is a guess."""
        if self._guess is not None:
            self._watch = LastUsed(self._model)

    def stop(self) -> None:
        """See no more of it."""
        if self._watch is not None:
            self._watch.stop()

    def elsewhere(self) -> str | None:
        """Return, once, which module is the head, where it is not the guessed one."""
        used = self._watch.name if self._watch is not None else None
        guess, self._guess, self._watch = self._guess, None, None
        if guess is None or used is None or used == guess:
            return None
        self.found = used
        warnings.warn(
            f"params='head': the module used last is {used!r}, not {guess!r}. It is scored from "
            f"the next batch on; this first one trains on the plain mean. Pass params='{used}.*' "
            "to score it from the start.",
            stacklevel=3,
        )
        return used

    def settle(self) -> str | None:
        """Return what an earlier training found, and look no more where it did."""
        if self.found is not None:
            self._guess = None
        return self.found
