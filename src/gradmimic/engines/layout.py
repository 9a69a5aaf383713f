"""Where the samples are in a tensor: which axis is the batch's.

    rows              [b, …]         the usual
    columns           [t, b, …]      time first
    blocks            [b·k, …]       sample i has the rows i·k … i·k + k − 1
    strides           [k·b, …]       sample i has the rows i, i + b, i + 2b, …

A shape may fit several of them; which one it is, the gradients of a batch with random signs tell
(``ghost.py``).
"""

from typing import Literal

import torch
from torch import Tensor

Layout = Literal["rows", "columns", "blocks", "strides"]


def layouts(shape: torch.Size, b: int) -> list[Layout]:
    """Name the layouts that a shape fits, the likeliest first.

    Args:
        shape: of a tensor that an operation gave.
        b: the number of samples.

    Example:
        >>> layouts(torch.Size([6, 3, 5]), 3)
        ['columns', 'blocks', 'strides']
    """
    if len(shape) == 0:
        return ["rows"] if b == 1 else []
    found: list[Layout] = []
    if shape[0] == b:
        found.append("rows")
    if len(shape) > 2 and shape[1] == b:
        found.append("columns")
    if b and shape[0] > b and shape[0] % b == 0:
        found += ["blocks", "strides"]
    return found[:1] if b == 1 else found


def by_sample(product: Tensor, layout: Layout, b: int) -> Tensor:
    """Sum all that belongs to one sample, in single precision at least.

    Args:
        product: a tensor of this layout.
        layout: where its samples are.
        b: their number.

    Returns:
        ``[b]``.

    Example:
        >>> by_sample(torch.arange(6.0), "strides", 3)
        tensor([3., 5., 7.])
    """
    wide = torch.promote_types(product.dtype, torch.float32)
    if product.ndim == 0:
        return product.reshape(1).to(wide)
    if layout == "columns":
        others = [axis for axis in range(product.ndim) if axis != 1]
        return product.sum(others, dtype=wide)
    if layout == "rows":
        others = list(range(1, product.ndim))
        return product.sum(others, dtype=wide) if others else product.to(wide)
    k = len(product) // b
    split = product.reshape(b, k, -1) if layout == "blocks" else product.reshape(k, b, -1)
    return split.sum((1, 2) if layout == "blocks" else (0, 2), dtype=wide)


def inner(x: Tensor, y: Tensor, layout: Layout, b: int) -> Tensor:
    """Take the inner product of each sample's part of two tensors.

    Args:
        x: a tensor of this layout.
        y: another one of the same shape.
        layout: where the samples are in both.
        b: their number.

    Returns:
        ``[b]``, in single precision at least.

    Example:
        >>> inner(torch.ones(2, 3), torch.ones(2, 3), "rows", 2)
        tensor([3., 3.])
    """
    plain = x.dtype == y.dtype and x.dtype in (torch.float32, torch.float64)
    if plain and x.device.type == "cpu" and layout in ("rows", "blocks") and _alike(x, y):
        # BLAS, sample by sample: a product of all would be another tensor of that size
        size = (b, x.numel() // b)
        rows = [t.as_strided(size, (size[1], 1), t.storage_offset()) for t in (x, y)]
        return torch.stack([torch.dot(own, other) for own, other in zip(*rows, strict=True)])
    return by_sample(x * y, layout, b)


def _alike(x: Tensor, y: Tensor) -> bool:
    """Tell whether two tensors lie in memory alike, without gaps, one sample after the other."""
    if x.is_contiguous() and y.is_contiguous():
        return True
    last = torch.channels_last
    return x.ndim == 4 and all(t.is_contiguous(memory_format=last) for t in (x, y))


def over_samples(values: Tensor, layout: Layout, tensor: Tensor) -> Tensor:
    """Shape one number per sample so that it multiplies a tensor of this layout.

    Args:
        values: ``[b]``.
        layout: where the samples are in ``tensor``.
        tensor: what is to be multiplied.

    Returns:
        A tensor that broadcasts against ``tensor``.

    Example:
        >>> over_samples(torch.tensor([1.0, 2.0]), "strides", torch.zeros(4))
        tensor([1., 2., 1., 2.])
    """
    if tensor.ndim == 0:
        return values.reshape(())
    if layout == "columns":
        return values.reshape(-1, *[1] * (tensor.ndim - 2))
    if layout == "blocks":
        values = values.repeat_interleave(len(tensor) // len(values))
    elif layout == "strides":
        values = values.repeat(len(tensor) // len(values))
    return values.reshape(-1, *[1] * (tensor.ndim - 1))


def per_sample(product: Tensor, layout: Layout, b: int, tail: int) -> Tensor:
    """Sum over all axes but the samples' and the last ones.

    Args:
        product: a tensor of this layout.
        layout: where its samples are.
        b: their number.
        tail: how many of the last axes stay.

    Returns:
        ``[b, *product.shape[-tail:]]``.

    Example:
        >>> per_sample(torch.ones(2, 5, 3), "rows", 2, 1).shape
        torch.Size([2, 3])
    """
    if layout == "blocks":
        product = product.unflatten(0, (b, -1))
    elif layout == "strides":
        product = product.unflatten(0, (-1, b))
    first = 0 if layout in ("rows", "blocks") else 1
    others = [axis for axis in range(product.ndim - tail) if axis != first]
    return product.sum(others) if others else product
