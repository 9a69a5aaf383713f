"""The embeddings of all ranks, rank by rank, with what both ways of differentiating need of them.

    f = (f_1, …, f_R)       [B, e]      B = Σ_r b_r, any b_r
    forward mode            df = (df_1, …, df_R): a sample's loss moves with the others' embeddings
    reverse mode            ∂/∂f_r = Σ over ranks q of what rank q's losses say of f_r

Sources: ``local_loss`` and ``gather_with_grad`` of OpenCLIP, whose names for this we keep.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradmimic.errors import RankError


def rank_count() -> int:
    """Return how many processes ``torch.distributed`` joins; 1 where it is not initialised."""
    there = dist.is_available() and dist.is_initialized()
    return dist.get_world_size() if there else 1


def gather(own: Tensor, *, with_grad: bool = True) -> tuple[Tensor, int]:
    """Return the rows of all ranks; a collective, which every rank has to come to.

    Args:
        own: ``[b, e]``; e is the same everywhere, b may be any number.
        with_grad: let gradients go back to the other ranks, in one more collective. Else each
            takes those of its own losses alone, and what its rows do to others' losses is lost.

    Returns:
        ``[B, e]``, with this rank's rows among them, and where those begin.

    Raises:
        RankError: another rank is gone, or did not come here.

    Example:
        >>> gather(torch.eye(2))
        (tensor([[1., 0.],
                [0., 1.]]), 0)
    """
    if rank_count() == 1:
        return own, 0
    sizes = _sizes(own)
    before = sum(sizes[: dist.get_rank()])
    rows: Tensor = _Gather.apply(own, sizes, with_grad)  # type: ignore[no-untyped-call]
    return rows, before


class _Gather(torch.autograd.Function):
    """f_r -> (f_1, …, f_R) on every rank."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, sizes: list[int], with_grad: bool) -> Tensor:
        ctx.sizes, ctx.with_grad = sizes, with_grad
        return _rows(own, sizes)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _rows(tangent, ctx.sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.with_grad:
            return _Sum.apply(gradient, ctx.sizes), None, None  # type: ignore[no-untyped-call]
        return _own(gradient, ctx.sizes), None, None


class _Sum(torch.autograd.Function):
    """The adjoint: Σ over ranks, of which each keeps its own rows."""

    @staticmethod
    def forward(ctx: Any, every: Tensor, sizes: list[int]) -> Tensor:
        ctx.sizes = sizes
        total = every.clone(memory_format=torch.contiguous_format)
        _call(dist.all_reduce, total)
        return _own(total, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Gather.apply(gradient, ctx.sizes, True), None  # type: ignore[no-untyped-call]


def _own(every: Tensor, sizes: list[int]) -> Tensor:
    rows: Tensor = every.split(sizes)[dist.get_rank()]
    return rows


def _sizes(own: Tensor) -> list[int]:
    """Return the number of rows of every rank."""
    here = torch.tensor([len(own)], device=own.device)
    sizes = [torch.empty_like(here) for _ in range(dist.get_world_size())]
    _call(dist.all_gather, sizes, here)
    return [int(size) for size in torch.cat(sizes).tolist()]


def _rows(own: Tensor, sizes: list[int]) -> Tensor:
    """Return the rows of all ranks; those that have fewer send zeros, which are cut off again."""
    padded = own.new_zeros(max(sizes), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in sizes]
    _call(dist.all_gather, parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _call(collective: Any, *tensors: Any) -> None:
    try:
        collective(*tensors)
    except RuntimeError as error:
        raise RankError(
            f"rank {dist.get_rank()} of {dist.get_world_size()} could not exchange its embeddings: "
            "another rank ended, raised, or takes no loss of this batch. Look at the other ranks' "
            "output first. For losses over each rank's own batch pass batch='local'."
        ) from error
