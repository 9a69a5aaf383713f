"""The last layer of a model, and what passes through it: one forward hook, nothing replaced."""

from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor, nn

from gradmimic.direction import LastUsed, choose, find_head
from gradmimic.errors import ParameterError, UsageError
from gradmimic.wrapped import keep_out_of_graphs, unwrapped


class HeadWatch:
    """Watch passes of a model; the first one shows which module is used last.

    Args:
        model: any module whose last layer with parameters is an ``nn.Linear``.

    Attributes:
        name: the last layer's name in the model; None before the first pass.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 4))
        >>> watch = HeadWatch(model)
        >>> with watch:
        ...     logits = model(torch.ones(5, 3))
        >>> watch.name, watch.taken()[0].shape
        ('2', torch.Size([5, 2]))
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = unwrapped(model)
        self.name: str | None = None
        self._hooks = ExitStack()
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}  # by module: its input, its output
        guess = self._model.get_submodule(find_head(self._model))
        keep_out_of_graphs([guess])  # compiled code would run without hooks

    @property
    def layer(self) -> nn.Linear:
        """The last layer."""
        assert self.name is not None  # noqa: S101  a pass has shown it
        found = self._model.get_submodule(self.name)
        assert isinstance(found, nn.Linear)  # noqa: S101
        return found

    def __enter__(self) -> "HeadWatch":
        self._seen = {}
        if self.name is None:
            self._used = LastUsed(self._model)
            self._hooks.callback(self._used.stop)
            watched = {n: m for n, m in self._model.named_modules() if isinstance(m, nn.Linear)}
        else:
            watched = {self.name: self.layer}
        for name, module in watched.items():
            hook = module.register_forward_hook(partial(self._keep, name))
            self._hooks.callback(hook.remove)
        head = choose(self._model, "head", head=self.name)
        self._hooks.enter_context(head.read_again())  # by what was compiled before the hooks came
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._hooks.close()
        if kind is not None:
            self._seen = {}
        elif self.name is None and (used := self._used.name) is not None:
            module = self._model.get_submodule(used)
            if not isinstance(module, nn.Linear):
                raise ParameterError(
                    f"The last layer that ran is {used!r}, a {type(module).__name__}; these "
                    "scorers need an nn.Linear there. GradMimic scores any layer."
                )
            self.name = used

    def taken(self) -> tuple[Tensor, Tensor]:
        """Return the last layer's input ``[b, d]``, without graph, and its output; once.

        Raises:
            UsageError: no pass went through it.
            ParameterError: its input is not ``[b, d]``.
        """
        seen, self._seen = self._seen, {}
        if self.name not in seen:
            raise UsageError(
                "There is no forward pass to score. Expected `with scores:` around the model's "
                "forward pass, then one call of weigh."
            )
        features, output = seen[self.name]
        if features.ndim != 2:
            raise ParameterError(
                f"The last layer {self.name!r} takes inputs {list(features.shape)}; these scorers "
                "need one row of features per sample, [b, d]. For tokens use GradMimic."
            )
        return features, output

    def _keep(self, name: str, _module: nn.Module, inputs: Any, output: Tensor) -> None:
        self._seen[name] = (inputs[0].detach(), output)
