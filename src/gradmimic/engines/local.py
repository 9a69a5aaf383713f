"""The derivative of one operation by itself: dz = J v, with J = ∂F/∂θ at the data it had.

In forward mode, or, where torch has no formula for that, by u ↦ Jᵀu, which is linear in u and has
J v as its derivative along v.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor

from gradmimic.engines.arguments import Function, Read, flat, floats, function_name, replaced
from gradmimic.engines.attention import DifferentiableAttention
from gradmimic.engines.forward import ForwardEngine, load_formulas, remedy_for
from gradmimic.errors import UnsupportedOperationError


def dual(
    function: Function, args: Sequence[Any], named: Mapping[str, Any], reads: Sequence[Read]
) -> list[Tensor | None]:
    """Differentiate one operation along its parameters' tangents, in forward mode.

    Args:
        function: the operation.
        args: its arguments.
        named: its keyword arguments.
        reads: the parameters among them.

    Returns:
        One tangent for each floating point output; None is 0.

    Raises:
        UnsupportedOperationError: torch has no forward-mode formula for it.
    """
    if ForwardEngine._open is not None:  # a pass whose losses were never asked for
        ForwardEngine._open.close()
    load_formulas()
    try:
        with (
            torch.no_grad(),
            fwAD.dual_level(),
            _plain_kernels(function),
            DifferentiableAttention(),
        ):
            duals = {
                id(r.tensor): fwAD.make_dual(r.tensor.detach(), r.tangent)
                if r.tangent is not None
                else r.tensor.detach()
                for r in reads
            }
            new_args, new_named = replaced(args, named, duals)
            outs = [out for out in flat(function(*new_args, **new_named)) if floats(out)]
            return [fwAD.unpack_dual(out).tangent for out in outs]
    except (NotImplementedError, RuntimeError) as error:
        with suppress(NotImplementedError, RuntimeError):
            return _twice_transposed(function, args, named, reads)
        named_as = ", ".join(r.name for r in reads)
        remedy = remedy_for(str(error))
        raise UnsupportedOperationError(
            f"engine='ghost' cannot differentiate {function_name(function)} by {named_as}, neither "
            f"as linear in it nor in forward mode: {str(error).splitlines()[0]} "
            f"{f'Either {remedy}; or s' if remedy else 'S'}core other parameters (params=), or use "
            "engine='oracle'."
        ) from error


def _twice_transposed(
    function: Function, args: Sequence[Any], named: Mapping[str, Any], reads: Sequence[Read]
) -> list[Tensor | None]:
    """Take J v from two backward passes: u ↦ Jᵀu is linear in u, and so has J v as derivative."""
    own = [read for read in reads if read.tangent is not None]
    with torch.enable_grad(), _plain_kernels(function):
        leaves = {id(r.tensor): r.tensor.detach().requires_grad_() for r in own}
        new_args, new_named = replaced(args, named, leaves)
        outs = [out for out in flat(function(*new_args, **new_named)) if floats(out)]
        u = [torch.zeros_like(out, requires_grad=True) for out in outs]
        back = torch.autograd.grad(
            outs, list(leaves.values()), u, create_graph=True, materialize_grads=True
        )
        return list(torch.autograd.grad(back, u, [r.tangent for r in own], allow_unused=True))


@contextmanager
def _plain_kernels(function: Function) -> Iterator[None]:
    """Leave the fused kernels of recurrent layers, which have no forward mode."""
    if not any(part in function_name(function) for part in ("lstm", "gru", "rnn")):
        yield
        return
    mkldnn = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # not the public flags(): they warn of TF32
    try:
        with torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch._C._set_mkldnn_enabled(mkldnn)
