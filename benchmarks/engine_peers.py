"""Other ways to the same scores: per-sample gradients first, then their products with v.

    m_i = −⟨g_i, v⟩ / ‖v‖     g_i from torch.func's vmap(grad), Opacus, or one backward each

They hold g ``[b, P]``; the re-weighted step is then Σ_i w_i g_i, without a second backward pass.
One backward a sample holds nothing, and takes a weighted step after the scores.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from engine_models import Case
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gradmimic.bench.models import Batch
from gradmimic.score import batch_weights

Gradients = dict[str, Tensor]  # [b, *shape] by the parameters' names
Way = Callable[[nn.Module, Batch, Case], Gradients]
PIECE = 32  # samples whose gradients are held at a time, where the memory is not what is measured


def vmapped(model: nn.Module, batch: Batch, case: Case) -> Gradients:
    """torch.func: one sample's gradient, mapped over the batch."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        called = lambda *inputs: functional_call(model, weights, inputs)
        # a stand-in that is called like a module
        return case.losses(called, (x[None], y[None]))[0]  # type: ignore[arg-type]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that are mapped by a loop
        found: Gradients = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, *batch)
    return found


def opacus_gradients(model: nn.Module, batch: Batch, case: Case) -> Gradients:
    """Opacus: hooks that form each layer's per-sample gradients in the backward pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus import GradSampleModule

        wrapped: Any = GradSampleModule(model, loss_reduction="sum")
        try:
            case.losses(wrapped, batch).sum().backward()
            found = {name: p.grad_sample for name, p in model.named_parameters()}  # type: ignore[attr-defined]
        finally:
            wrapped.to_standard_module()
            for p in model.parameters():
                p.grad = None
                p.grad_sample = None  # type: ignore[attr-defined]
    return found


HOLDING: dict[str, Way] = {"vmap(grad)": vmapped, "Opacus": opacus_gradients}
"""Peers that hold every sample's gradient."""


def products(gradients: Gradients, v: dict[str, Tensor]) -> Tensor:
    """Return ⟨g_i, v⟩, ``[b]``."""
    return torch.stack([g.flatten(1) @ v[name].flatten() for name, g in gradients.items()]).sum(0)


def holding_scores(
    way: Way, model: nn.Module, batch: Batch, case: Case, v: dict[str, Tensor], piece: int
) -> Tensor:
    """Return the scores, from the gradients of a piece of the batch at a time."""
    pieces = zip(batch[0].split(piece), batch[1].split(piece), strict=True)
    return -torch.cat([products(way(model, few, case), v) for few in pieces]) / norm(v)


def holding_step(
    way: Way, model: nn.Module, batch: Batch, case: Case, v: dict[str, Tensor]
) -> None:
    """Leave Σ_i w_i g_i in the parameters' ``grad``."""
    gradients = way(model, batch, case)
    weights = batch_weights(-products(gradients, v) / norm(v), 1.0)
    for name, p in model.named_parameters():
        p.grad = torch.tensordot(weights, gradients[name], 1)


def one_backward_each(model: nn.Module, batch: Batch, case: Case, v: dict[str, Tensor]) -> Tensor:
    """Return the scores, sample by sample: a forward and a backward pass of each alone."""
    parameters, scores = list(model.parameters()), []
    for x, y in zip(*batch, strict=True):
        (loss,) = case.losses(model, (x[None], y[None]))
        gradients = torch.autograd.grad(loss, parameters)
        scores.append(sum((g * d).sum() for g, d in zip(gradients, v.values(), strict=True)))
    return -torch.stack(scores) / norm(v)  # type: ignore[arg-type]


def first_of_shared(
    model: nn.Module, batch: Batch, case: Case, v: dict[str, Tensor], n: int
) -> None:
    """Take the first n of the b backward passes, where each goes through the whole batch."""
    losses = case.losses(model, batch)
    for loss in losses[:n]:
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
        sum((g * d).sum() for g, d in zip(gradients, v.values(), strict=True))


def norm(v: dict[str, Tensor]) -> Tensor:
    """Return ‖v‖."""
    length: Tensor = torch.linalg.vector_norm(torch.stack([d.norm() for d in v.values()]))
    return length
