"""A linear probe: x ↦ W (x − mean) / spread + b, trained from zero or given."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from gradmimic.data.scale import Scale
from gradmimic.errors import ReferenceMismatchError, listed
from gradmimic.label_issues.inputs import IntArray
from gradmimic.reference import Reference

# Weights from which on threads share a step. A smaller one takes 0.8 ms alone; where
# other programs keep the cores busy, threads wait for each other up to 100 times longer.
_SHARED = 2**18
_EPOCHS = 5  # also for few samples: a probe that is trained longer learns their noise


class Probe(NamedTuple):
    """A linear classifier: x ↦ W (x − mean) / spread + b."""

    mean: Tensor  # [1, d]
    spread: Tensor  # scalar
    weight: Tensor  # [K, d]
    bias: Tensor  # [K]

    def __call__(self, x: Tensor) -> Tensor:
        """Return logits ``[b, K]`` of inputs ``[b, d]``."""
        return F.linear((x - self.mean) / self.spread, self.weight, self.bias)


class Data(NamedTuple):
    """Features and class numbers, and what chance depends on."""

    features: npt.NDArray[Any]  # [n, d], of any type, perhaps a file
    labels: Tensor  # [n] int64
    classes: int
    seed: int

    def inputs(self, rows: IntArray) -> Tensor:
        """Copy some rows, as float32."""
        taken = self.features[rows]
        if taken.dtype == np.float16:  # four times faster than NumPy
            return torch.from_numpy(taken).float()
        return torch.from_numpy(np.asarray(taken, dtype=np.float32))


def fit(data: Data, scale: Scale, rows: IntArray, weights: npt.NDArray[np.float32]) -> Probe:
    """Train a probe from zero on Σ w_i ℓ_i / b, with AdamW."""
    weight = torch.zeros(data.classes, data.features.shape[1], requires_grad=True)
    bias = torch.zeros(data.classes, requires_grad=True)
    probe = Probe(scale.mean, scale.spread, weight, bias)
    optimizer = torch.optim.AdamW([weight, bias], lr=1e-3, weight_decay=1e-5, fused=True)
    size = min(max(len(rows) // 100, 16), 256)
    generator = torch.Generator().manual_seed(data.seed)
    with torch.enable_grad(), threads(weight.numel()):
        for _ in range(_EPOCHS):
            for places in torch.randperm(len(rows), generator=generator).split(size):
                batch = rows[places.numpy()]
                logits = probe(data.inputs(batch))
                losses = F.cross_entropy(logits, data.labels[batch], reduction="none")
                optimizer.zero_grad()
                (torch.from_numpy(weights[batch]) * losses).mean().backward()
                optimizer.step()
    return Probe(*(tensor.detach() for tensor in probe))


@contextmanager
def threads(weights: int) -> Iterator[None]:
    """Let torch use one thread for so few weights; the caller's choice comes back."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if weights < _SHARED else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def given_probe(
    reference: Reference, d: int, classes: npt.NDArray[Any]
) -> tuple[Probe, npt.NDArray[Any]]:
    """Return a reference as a probe, and the classes in its order."""
    tensors = {name: tensor.float().cpu() for name, tensor in reference.tensors.items()}
    mean = tensors.pop("scale.mean", torch.zeros(1, d))
    spread = tensors.pop("scale.spread", torch.tensor(1.0))
    names = sorted(tensors, key=lambda name: -tensors[name].ndim)  # the weight first
    shapes = [list(tensors[name].shape) for name in names]
    k = shapes[0][0] if shapes and len(shapes[0]) == 2 else 0
    if shapes not in ([[k, d]], [[k, d], [k]]) or mean.shape != (1, d):
        raise ReferenceMismatchError(
            f"the reference ({reference.source}) is no linear probe of features [n, {d}]: it holds "
            f"{listed(f'{name} {list(tensors[name].shape)}' for name in names)}. Expected a weight "
            f"[classes, {d}] and a bias [classes], for these features."
        )
    numbered = classes.dtype.kind in "iu" and classes[0] >= 0 and classes[-1] < k
    if not numbered and len(classes) != k:
        raise ReferenceMismatchError(
            f"the reference ({reference.source}) knows {k} classes, but the labels hold "
            f"{len(classes)}. Expected labels 0 to {k - 1}, or {k} different ones."
        )
    bias = tensors[names[1]] if len(names) > 1 else torch.zeros(k)
    order = np.arange(k).astype(classes.dtype) if numbered else classes
    return Probe(mean, spread, tensors[names[0]], bias), order
