"""The re-weighted step with every weight gradient formed once, after the weights are known.

    ∇_θ Σ_i w_i ℓ_i = Σ_calls (∂F(a; v)/∂v)ᵀ (w_i b_i)        z = F(a; θ), b = ∂(Σ_j ℓ_j)/∂z

The output gradients b are what took the scores. They are kept, each sample's rows are scaled by its
weight, and the derivative F(a; v), being linear in v, carries them back to the parameters. A second
backward pass would compute b anew. The price is the memory of b.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from gradmimic.engines.arguments import Read
from gradmimic.engines.graph import walk
from gradmimic.engines.layout import Layout, over_samples
from gradmimic.engines.operations import NORMS, Call
from gradmimic.errors import UsageError

SHARE = 0.5
"""The share of the free memory that kept output gradients may take."""


@dataclass(eq=False)
class Kept:
    """What one pass keeps for the step.

    Args:
        parameters: those that train, by the names that reads bear.
        scale: what the output gradients were multiplied with.
        calls: a call, the number of its output, its gradient, and the edge of F(a; v).
        sums: per-sample gradients ``[b, *shape]`` of parameters that scale or shift, which are
            smaller than the outputs.
    """

    parameters: dict[str, nn.Parameter]
    scale: float = 1.0
    calls: list[tuple[Call, int, Tensor, Any]] = field(default_factory=list)
    sums: list[tuple[Read, Tensor]] = field(default_factory=list)
    leaves: dict[int, Tensor] = field(default_factory=dict)
    done: bool = False

    def leaf(self, read: Read) -> Tensor:
        """Return the v of a parameter, which gradients reach."""
        if id(read.tensor) not in self.leaves:
            value = torch.zeros_like(read.tensor) if read.tangent is None else read.tangent
            self.leaves[id(read.tensor)] = value.detach().requires_grad_(self._trains(read))
        return self.leaves[id(read.tensor)]

    def leave_out_unused(self) -> None:
        """Forget the parameters that nothing was computed with: no gradient is to reach them.

        DDP takes a parameter that got none, but whose turn came, for one that came twice.
        """
        reads = [r for call, *_ in self.calls for r in call.reads] + [r for r, _ in self.sums]
        made = walk([r.tensor for r in reads if not r.is_parameter], [])
        used = {id(leaf) for leaf in made.leaves}
        names = {r.name for r in reads if r.is_parameter}
        self.parameters = {
            name: parameter
            for name, parameter in self.parameters.items()
            if name in names or id(parameter) in used
        }

    def applied(self, call: Call, gradient: Tensor) -> Tensor | None:
        """Return dz of a linear call, and keep its gradient."""
        tangent = self._applied(call)
        if tangent.requires_grad:
            self.calls.append((call, 0, gradient, get_gradient_edge(tangent)))
        return tangent.detach()

    def gradients(
        self, weights: Tensor, places: dict[tuple[Call, int], Layout]
    ) -> list[Tensor | None]:
        """Form each parameter's gradient of Σ_i w_i ℓ_i, in the order of ``parameters``.

        Args:
            weights: ``[b]``.
            places: where the samples are in each call's output.
        """
        if self.done:
            raise UsageError(
                "This loss was differentiated already. GradMimic(…, backward='twice') makes losses "
                "that keep their graph."
            )
        self.done = True
        w = weights / self.scale
        by_read: dict[int, tuple[Read, Tensor]] = {}

        def add(read: Read, gradient: Tensor | None) -> None:
            if gradient is not None and self._trains(read):
                before = by_read.get(id(read.tensor))
                total = gradient if before is None else before[1] + gradient
                by_read[id(read.tensor)] = read, total

        for read, rows in self.sums:
            add(read, torch.tensordot(w.to(rows), rows, 1).to(read.tensor.dtype))
        self.sums = []
        while self.calls:  # each one is let go as soon as it is used
            call, k, gradient, edge = self.calls.pop()
            factor = over_samples(w, places[call, k], gradient).to(gradient.dtype)
            scaled = gradient * factor
            del gradient
            if edge is None and call.is_linear:
                applied = self._applied(call)
                edge = get_gradient_edge(applied) if applied.requires_grad else None
                if edge is None:
                    continue
            if edge is None:
                for read, found in _by_running_again(call, k, scaled):
                    add(read, found)
                continue
            leaves = [r for r in call.reads if self.leaf(r).requires_grad]
            formed = torch.autograd.grad(
                edge, [self.leaf(r) for r in leaves], scaled, allow_unused=True
            )
            for read, own in zip(leaves, formed, strict=True):
                add(read, own)
        return self._of_parameters(list(by_read.values()))

    def _of_parameters(self, found: list[tuple[Read, Tensor]]) -> list[Tensor | None]:
        """Carry gradients of tensors made of parameters on to these."""
        names = list(self.parameters)
        total: dict[str, Tensor | None] = dict.fromkeys(names)
        made = [(read.tensor, own) for read, own in found if not read.is_parameter]
        if made:
            further = torch.autograd.grad(
                [tensor for tensor, _ in made],
                [self.parameters[name] for name in names],
                [own.to(tensor.dtype) for tensor, own in made],
                retain_graph=True,
                allow_unused=True,
            )
            total.update(zip(names, further, strict=True))
        for read, own in found:
            if read.is_parameter:
                before = total[read.name]
                total[read.name] = own if before is None else before + own
        return [total[name] for name in names]

    def _applied(self, call: Call) -> Tensor:
        with torch.enable_grad():
            return call.applied({id(r.tensor): self.leaf(r) for r in call.reads})

    def _trains(self, read: Read) -> bool:
        return read.name in self.parameters if read.is_parameter else read.tensor.requires_grad


def _by_running_again(call: Call, k: int, scaled: Tensor) -> Iterable[tuple[Read, Tensor | None]]:
    with torch.enable_grad():
        leaves = {id(r.tensor): r.tensor.detach().requires_grad_() for r in call.reads}
        out = call.rerun(leaves)[k]
    own = torch.autograd.grad(out, list(leaves.values()), scaled, allow_unused=True)
    return zip(call.reads, own, strict=True)


class _OneBackward(torch.autograd.Function):
    """Σ_i w_i ℓ_i, whose backward pass forms the gradients of the parameters from what was kept.

    The losses take part without a gradient: so the backward pass still walks their graph, computes
    nothing there, and lets go of what the graph holds.
    """

    @staticmethod
    def forward(
        ctx: Any, losses: Tensor, weights: Tensor, kept: Kept, places: Any, *parameters: Tensor
    ) -> Tensor:
        ctx.kept, ctx.weights, ctx.places = kept, weights, places
        return (weights * losses).sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (g,) = grads
        found = ctx.kept.gradients(ctx.weights * g, ctx.places)
        return None, None, None, None, *found


def one_backward(
    losses: Tensor, weights: Tensor, kept: Kept, places: dict[tuple[Call, int], Layout]
) -> Tensor:
    """Return Σ_i w_i ℓ_i, to be differentiated once.

    Args:
        losses: ``[b]``, with their graph.
        weights: ``[b]``, without one.
        kept: of the pass that scored them.
        places: where the samples are in each call's output.

    Returns:
        A scalar.
    """
    kept.leave_out_unused()
    total: Tensor = _OneBackward.apply(  # type: ignore[no-untyped-call]
        losses, weights.detach(), kept, places, *kept.parameters.values()
    )
    return total


def has_room(calls: Sequence[Call]) -> bool:
    """Tell whether the calls' output gradients may be kept beside all else.

    Args:
        calls: of the pass.
    """
    needed = sum(
        shape.numel() * dtype.itemsize
        for call in calls
        if call.function not in NORMS
        for shape, dtype in zip(call.shapes, call.dtypes, strict=True)
    )
    device = calls[0].reads[0].tensor.device if calls else torch.device("cpu")
    return needed <= SHARE * _free(device)


def _free(device: torch.device) -> float:
    """Return the bytes that can still be had; without limit where the system does not tell."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + cached)
    table = Path("/proc/meminfo")
    lines = table.read_text().splitlines() if device.type == "cpu" and table.exists() else []
    free = (float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return next(free, float("inf"))
