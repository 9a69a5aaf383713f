"""Attention that forward-mode derivatives can pass through.

The fused kernels have no forward-mode formula, the math backend has. Only a call that a dual number
reaches pays for it; attention below the scored parameters keeps its fast kernel.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

ATTENTION = {F.scaled_dot_product_attention, F.multi_head_attention_forward}


class DifferentiableAttention(TorchFunctionMode):
    """While active, attention over dual numbers runs on the math backend."""

    def __enter__(self) -> "DifferentiableAttention":
        # nn.MultiheadAttention's inference path would bypass torch functions altogether.
        self._fastpath = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        torch.backends.mha.set_fastpath_enabled(self._fastpath)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run one torch function, on the math backend where it is attention over dual numbers."""
        kwargs = kwargs or {}
        if func in ATTENTION and any(is_dual(value) for value in (*args, *kwargs.values())):
            with sdpa_kernel(SDPBackend.MATH):
                return func(*args, **kwargs)
        return func(*args, **kwargs)


def is_dual(value: object) -> bool:
    """Tell whether a value is a tensor that carries a forward-mode derivative.

    Args:
        value: anything.

    Returns:
        True for a dual number at the current level.

    Example:
        >>> with fwAD.dual_level():
        ...     is_dual(fwAD.make_dual(torch.ones(1), torch.ones(1))), is_dual(torch.ones(1))
        (True, False)
    """
    return isinstance(value, Tensor) and fwAD.unpack_dual(value).tangent is not None
