"""Transport: any reference that gives outputs has a head in the *current* feature space.

    A = Σ_j decay^(t−j) H_jᵀ H_j,   B = Σ_j decay^(t−j) H_jᵀ Z_j,   n = Σ_j decay^(t−j) b_j
    W*(t) = argmin_W Σ_j decay^(t−j) ‖H_j W − Z_j‖² + λ' ‖W‖² = (A + λ' I)⁻¹ B,   λ' = λ tr A / n
    v     = κ W*(t) − W(t)

H_j ``[b, d]`` are the features that the scored layer saw in batch j, with a 1 appended where it has
a bias, and Z_j ``[b, K]`` what the reference said of the same samples. The reference may have any
architecture, or be a table (``gradmimic.outputs``): only what it says is used. The ridge weighs as
much as λ samples, however many features there are. W* is taken again after min(EVERY, SOON · t)
steps: features move fastest at first, and a head for those of ten steps ago points nowhere.

A softmax model is never done with growing its logits, and a ridge fit shrinks the reference's. Left
so, v would soon point to less confidence and punish every sample that is known well. Hence κ:

    κ = SHARPNESS · ‖W‖_A / ‖W*‖_A      with ‖W‖²_A = tr Wᵀ A W

the reference's logits are taken at 16 times the size of the model's own, whatever their
temperature was. For embeddings, whose length means nothing, κ makes both equally long.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor, nn

from gradmimic.direction import Direction, Subset, direction
from gradmimic.errors import AlignmentError, DataError, UsageError
from gradmimic.outputs import Outputs, evaluating
from gradmimic.products import Products
from gradmimic.projection import scored_projections
from gradmimic.ranks import ALONE, Ranks
from gradmimic.rotation import common_space, rotated

SHARPNESS = 16.0
RIDGE = 0.1  # λ, in samples
MEMORY = 50  # steps: decay = 1 − 1/MEMORY; half of what counts is younger than 35
FIRST = 8  # steps before the first direction
SOON = 1 / 16  # share of all steps, after which W* is taken again
EVERY = 64  # steps, after which it is taken again at the latest


class Ridge:
    """Ridge regression of outputs on features, from running statistics.

    W* = (A + λ (tr A / n) I)⁻¹ B

    Args:
        d: the features' dimensions.
        k: the outputs'.
        device: where the statistics are kept; they are solved on the CPU, in double precision.

    Example:
        >>> fit = Ridge(1, 1, torch.device("cpu"))
        >>> fit.add(torch.ones(400, 1), torch.full((400, 1), 3.0))
        >>> fit.solve().round(decimals=2)
        tensor([[3.]])
    """

    def __init__(self, d: int, k: int, device: torch.device) -> None:
        self.a = torch.zeros(d, d, device=device)
        self.b = torch.zeros(d, k, device=device)
        self.n = 0.0  # samples that are remembered

    def add(self, h: Tensor, z: Tensor) -> None:
        """Forget a little, then add features ``[m, d]`` and outputs ``[m, k]``."""
        decay = 1 - 1 / MEMORY
        self.n = self.n * decay + len(h)
        self.a.mul_(decay).addmm_(h.T, h)
        self.b.mul_(decay).addmm_(h.T, z)

    def of_all(self, ranks: Ranks) -> "Ridge":
        """Return the statistics of all ranks together, which forget in step: their sum."""
        if ranks.size == 1:
            return self
        summed = Ridge(0, 0, torch.device("cpu"))
        summed.a, summed.b = ranks.total(self.a), ranks.total(self.b)
        summed.n = float(ranks.total(torch.tensor(self.n, dtype=torch.float64)))
        return summed

    def solve(self) -> Tensor:
        """Return W* ``[d, k]`` on the CPU."""
        a = self.a.double().cpu()
        a.diagonal().add_(RIDGE * a.trace() / max(self.n, 1.0) + torch.finfo(a.dtype).tiny)
        solved: Tensor = torch.linalg.solve(a, self.b.double().cpu())
        return solved.float()

    def length(self, w: Tensor) -> float:
        """Return ‖W‖_A of ``[d, k]``: how large the outputs h W are."""
        return float((w * (self.a.cpu() @ w)).sum().clamp(min=0).sqrt())


class Transport:
    """v = κ W*(t) − W(t): toward the head that the reference would have here.

    Args:
        model: the model being trained.
        subset: its scored parameters, one linear layer or several; or bare matrices, as in
            ``x @ projection``.
        outputs: a module that takes what the model takes, run beside it without gradients, or
            :class:`Outputs` to be looked up by id. Where several layers are scored, a module that
            returns a mapping from their names to embeddings.
        ranks: whose samples count; their statistics are summed whenever W* is taken.

    Attributes:
        missing: the number of visits of samples that the table does not know.

    Raises:
        AlignmentError: the scored parameters are no whole linear layers, nor matrices.

    Example:
        >>> from gradmimic.direction import choose
        >>> layer = nn.Linear(1, 2)
        >>> transport = Transport(layer, choose(layer), Outputs([0, 1], torch.eye(2)))
        >>> for _ in range(FIRST):
        ...     with transport.watching():
        ...         _ = layer(torch.tensor([[0.0], [1.0]]))
        ...     _ = transport.observe([0, 1])
        >>> transport.direction().tensors["weight"].shape
        torch.Size([2, 1])
    """

    LEARNED = ("_statistics", "_target", "_steps", "_next", "missing")
    name = "transport"
    first = FIRST  # passes that it learns from before the first direction

    def __init__(
        self,
        model: nn.Module,
        subset: Subset,
        outputs: nn.Module | Outputs,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._layers = scored_projections(subset, self.name)
        if len(self._layers) > 1:
            self._space: Mapping[str, int] | None = common_space(subset)
            if isinstance(outputs, Outputs):
                raise AlignmentError(
                    f"params= names {len(self._layers)} layers, but a table holds the outputs of "
                    "one. Pass a module that returns a mapping from each layer's name to its "
                    "embeddings."
                )
        else:
            self._space = None
        self.missing = 0
        self._model, self._subset, self._outputs = model, subset, outputs
        self._fits: dict[str, Ridge] = {}
        self._target: dict[str, Tensor] | None = None
        self._seen: dict[str, Tensor] = {}  # of the pass that is watched
        self._answer: Any = None
        self._asking = False
        self._steps = self._next = 0

    def direction(self) -> Direction | None:
        """Return v; None until the statistics have seen enough."""
        if self._steps < self.first:
            return None
        if self._target is None or self._steps >= self._next:
            self._target = self._solved()
            self._next = self._steps + max(1, int(min(EVERY, SOON * self._steps)))
        self._target = {  # moved once, not at each step
            name: self._target[name].to(parameter.device, parameter.dtype)
            for name, parameter in self._subset.parameters.items()
        }
        return direction(self._subset, self._target)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Keep the inputs of the scored layers, and ask the reference about the model's."""
        self._seen, self._answer = {}, None
        with ExitStack() as hooks:
            for name, own in self._layers.items():
                if own.layer is not None:
                    hooks.callback(own.layer.register_forward_pre_hook(self._keep(name)).remove)
            if bare := [own.use for own in self._layers.values() if own.use is not None]:
                hooks.enter_context(Products(bare, self._see))
            if isinstance(self._outputs, nn.Module):
                ask = self._model.register_forward_pre_hook(self._ask, with_kwargs=True)
                hooks.callback(ask.remove)
            yield

    def observe(self, ids: Any | None) -> Tensor | None:
        """Add the pass that was watched to the statistics; None: the reference knew all samples.

        Raises:
            UsageError: there is a table but no ids, or a scored layer did not run.
            DataError: the outputs do not fit the features, or are not finite.
        """
        said, known = self._said(ids)
        for name in self._layers:
            if name not in self._seen:
                raise UsageError(
                    f"the scored layer {name!r} did not run in the `with` block, so transport has "
                    "no features to learn from. Run the model's forward pass inside it."
                )
            self._add(name, self._seen[name], said[name], known)
        self._seen, self._answer = {}, None
        if self._learned_anywhere(known):  # of unknown samples nothing is learned
            self._steps += 1
        return known

    @property
    def _statistics(self) -> dict[str, list[Any]]:
        """A, B and n of each layer, as plain data."""
        return {name: [fit.a, fit.b, fit.n] for name, fit in self._fits.items()}

    @_statistics.setter
    def _statistics(self, told: Mapping[str, list[Any]]) -> None:
        self._fits = {}
        for name, (a, b, n) in told.items():
            fit = self._fits[name] = Ridge(0, 0, a.device)
            fit.a, fit.b, fit.n = a, b, n

    def _learned_anywhere(self, known: Tensor | None) -> bool:
        if isinstance(self._outputs, nn.Module):
            return True  # on every rank, without asking
        return self._ranks.anywhere(known is None or bool(known.any()))

    def _said(self, ids: Any | None) -> tuple[Mapping[str, Tensor], Tensor | None]:
        """Return what the reference says of the batch, by layer, and which samples it knows."""
        if isinstance(self._outputs, Outputs):
            if ids is None:
                raise UsageError(
                    "the reference is a table of outputs by id, so weigh needs each sample's id: "
                    "weigh(losses, ids)."
                )
            rows, known = self._outputs.of(ids)
            self.missing += int((~known).sum())
            return dict.fromkeys(self._layers, rows), None if known.all() else known
        if self._answer is None:
            raise UsageError(
                f"{type(self._model).__name__} itself was not called in the `with` block, so its "
                "reference cannot be run on the same inputs. Call the model, not a part of it, or "
                "cache the reference's outputs (gradmimic cache) and pass those."
            )
        said = self._answer
        said = getattr(said, "logits", said)  # as models of transformers return them
        if isinstance(said, Tensor) and len(self._layers) == 1:
            said = dict.fromkeys(self._layers, said)
        if not isinstance(said, Mapping) or not self._layers.keys() <= said.keys():
            raise DataError(
                f"the reference {type(self._outputs).__name__} returned {type(said).__name__}; "
                "expected a tensor of outputs, or a mapping from the names of the scored layers "
                f"({', '.join(self._layers)}) to theirs."
            )
        return said, None

    def _add(self, name: str, h: Tensor, z: Tensor, known: Tensor | None) -> None:
        """Add one layer's features and outputs to its statistics."""
        if h.shape[:-1] != z.shape[:-1]:
            raise DataError(
                f"the scored layer {name!r} saw features {list(h.shape)}, the reference gave "
                f"outputs {list(z.shape)}. Expected one row of outputs for each row of features."
            )
        if known is not None:
            h, z = h[known.to(h.device)], z[known]
        h, z = h.flatten(0, -2).float(), z.to(h.device).flatten(0, -2).float()
        if self._space is None:
            k = self._layers[name].width
            if z.shape[1] != k:
                raise DataError(
                    f"the reference gives {z.shape[1]} outputs, the scored layer {name!r} has {k}. "
                    "Expected one for each class, in the same order."
                )
            z = z - z.mean(1, keepdim=True)  # softmax never sees the mean
        if self._layers[name].biased:
            h = torch.cat([h, h.new_ones(len(h), 1)], dim=1)
        fit = self._fits.get(name)
        if fit is None or fit.a.device != h.device:
            fit = self._fits[name] = Ridge(h.shape[1], z.shape[1], h.device)
        fit.add(h, z)

    def _solved(self) -> dict[str, Tensor]:
        """Return κ W*, by the scored parameters' names."""
        fits = {name: fit.of_all(self._ranks) for name, fit in self._fits.items()}
        found = {name: fit.solve() for name, fit in fits.items()}  # [d, k]
        if not all(w.isfinite().all() for w in found.values()):
            raise DataError(
                f"the features of {type(self._model).__name__} or the reference's outputs are NaN "
                "or infinite, so no head can be fitted to them. Check both, or lower the learning "
                "rate."
            )
        target = {
            key: part
            for name, w in found.items()
            for key, part in self._layers[name].named(w).items()
        }
        sharpness = SHARPNESS
        if self._space is not None:
            target, sharpness = rotated(target, self._subset, self._space), 1.0
        for name, projection in self._layers.items():
            fit, current, near = fits[name], projection.current(), projection.joined(target)
            if self._space is None:
                current = current - current.mean(1, keepdim=True)
            # A head that starts at zero has no size yet: the reference's own is taken.
            own, length = fit.length(current), fit.length(near)
            kappa = sharpness * own / length if own and length else 1.0
            target |= projection.named(kappa * near)
        return target

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(_layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._see(name, inputs[0])

        return hook

    def _see(self, name: str, inputs: Tensor, _product: Tensor | None = None) -> None:
        self._seen[name] = fwAD.unpack_dual(inputs).primal.detach()

    def _ask(self, _model: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        # Before the model runs: with its activations alive, all that the reference needs would be
        # fresh memory, which on a CPU costs half a forward pass.
        assert isinstance(self._outputs, nn.Module)  # noqa: S101
        if self._asking:  # a reference that is the model, or holds it
            return
        self._asking = True
        try:
            with evaluating(self._outputs), torch.no_grad():
                self._answer = self._outputs(*args, **named)
        finally:
            self._asking = False
