"""Find where the samples are in each output of a pass, and that they do not interact.

    b(s)_i = s_i b_i      b(s) = ∂(Σ_j s_j ℓ_j)/∂z,  s random signs

A row of an output that leads to its own sample's loss alone has a gradient that follows that
sample's sign. Rows are compared by their inner products with fixed random numbers. One look is
enough for all passes of a model whose autograd graphs are of the same kind.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradmimic.engines.layout import Layout, inner, layouts
from gradmimic.engines.operations import Call
from gradmimic.errors import UnsupportedOperationError

Layouts = list[list[Layout]]
"""One for each output of each call."""
Sums = dict[tuple[int, int], dict[Layout, Tensor]]
"""By call, output and layout: one number per sample."""

_seen: WeakKeyDictionary[nn.Module, dict[tuple[int, bool], Layouts]] = WeakKeyDictionary()


def possible(calls: Sequence[Call], b: int) -> list[list[list[Layout]]]:
    """List the layouts that the shape of each output of each call allows."""
    return [[layouts(shape, b) for shape in call.shapes] for call in calls]


def recall(
    model: nn.Module | None, kind: int, fits: list[list[list[Layout]]], b: int
) -> Layouts | None:
    """Return what an earlier pass of this kind has shown, where it suits these shapes."""
    known = _seen.get(model, {}).get((kind, b > 1)) if model is not None else None
    if known is None or len(known) != len(fits):
        return None
    suits = all(
        len(own) == len(outs)
        and all(place in fit for place, fit in zip(own, outs, strict=True) if fit)
        for own, outs in zip(known, fits, strict=True)
    )
    return known if suits else None


def keep(model: nn.Module | None, kind: int, chosen: Layouts, b: int) -> None:
    """Remember what a pass has shown."""
    if model is not None:
        _seen.setdefault(model, {})[kind, b > 1] = chosen


def signs(b: int) -> Tensor:
    """Return ``[b]`` signs without a period: the Thue–Morse sequence."""
    return torch.tensor([1.0 - 2.0 * (i.bit_count() % 2) for i in range(b)])


def probed(gradient: Tensor, seed: int, places: Sequence[Layout], b: int) -> dict[Layout, Tensor]:
    """Meet an output gradient with fixed random numbers, in every layout that it may have."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(gradient.shape, generator=generator).to(gradient)
    return {place: inner(gradient, noise, place, b) for place in places}


def tell(
    calls: Sequence[Call], fits: list[list[list[Layout]]], plain: Sums, signed: Sums, b: int
) -> tuple[Layouts, bool]:
    """Tell the layout of each output.

    Args:
        calls: of the pass.
        fits: what their shapes allow.
        plain: of the losses' sum, every output that a gradient reached.
        signed: of the losses with signs; empty where there is one sample.
        b: the number of samples.

    Returns:
        The layouts, and whether they are certain.

    Raises:
        UnsupportedOperationError: in no layout does a row follow its sample's sign.
    """
    chosen: Layouts = [[fit[0] if fit else "rows" for fit in outs] for outs in fits]
    if b == 1:
        return chosen, True
    largest = max((float(s.abs().max()) for own in plain.values() for s in own.values()), default=0)
    certain = largest > 0
    for (index, k), sums in plain.items():
        other = signed[index, k]
        left = [place for place, own in sums.items() if _follows(own, other[place], largest)]
        if not left:
            raise _interacting(calls[index])
        certain = certain and len(left) == 1
        chosen[index][k] = left[0]
    return chosen, certain


def refuse_without_samples(calls: Sequence[Call], fits: list[list[list[Layout]]], b: int) -> None:
    """Raise where an output fits no layout."""
    for call, outs in zip(calls, fits, strict=True):
        for shape, fit in zip(call.shapes, outs, strict=True):
            if not fit:
                raise UnsupportedOperationError(
                    f"{call.name} gives {list(shape)}, in which engine='ghost' finds no axis of "
                    f"the {b} samples. Score other parameters with params=, or use "
                    "engine='forward'."
                )


def over_the_batch(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules that normalize by statistics of the batch, as they are now, by name."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or not module.track_running_stats):
            yield name, module


def count_uses(model: nn.Module | None) -> Counter[int]:
    """Count the places where a model holds each parameter, by its id."""
    uses: Counter[int] = Counter()
    for module in model.modules() if model is not None else ():
        uses.update(id(p) for p in module._parameters.values() if p is not None)
    return uses


def _follows(plain: Tensor, signed: Tensor, largest: float) -> bool:
    """Tell whether every row's gradient took its sample's sign."""
    tolerance = 1e-7 if plain.dtype == torch.float64 else 1e-3
    expected = plain * signs(len(plain)).to(plain)
    limit = tolerance * float(expected.abs().max()) + tolerance * 1e-3 * largest
    return float((expected - signed).abs().max()) <= limit


def _interacting(call: Call) -> UnsupportedOperationError:
    return UnsupportedOperationError(
        f"Samples interact above {call.name}: a loss depends on other samples' rows of its output, "
        "as with contrastive losses and statistics over the batch. Use engine='forward'."
    )
