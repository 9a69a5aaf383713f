"""See ``x @ projection``, which no module does and no hook hears."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradmimic.direction import Use


class Products(TorchFunctionMode):
    """Calls back for every product with one of some bare matrices.

    Args:
        uses: of the matrices.
        seen: called with the matrix's name, x and the product.
    """

    def __init__(self, uses: Iterable[Use], seen: Callable[[str, Tensor, Tensor], None]) -> None:
        super().__init__()
        # What the model reads in this pass, which may stand in for the parameter.
        self._names = {id(use.module._parameters[use.attribute]): use.name for use in uses}
        self._seen = seen

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one torch function, and look whether it is the product with one of the matrices."""
        out = func(*args, **(kwargs or {}))
        if len(args) == 2 and func in _MATMUL and id(args[1]) in self._names:
            self._seen(self._names[id(args[1])], args[0], out)
        return out


_MATMUL = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)
