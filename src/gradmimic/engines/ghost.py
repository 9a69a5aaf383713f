"""Engine ``ghost``: the output gradients of one backward pass, met by the layers applied with v.

    dℓ_i = Σ_calls ⟨b_i, dz_i⟩       b = ∂(Σ_j ℓ_j)/∂z,  dz = F(a; v)

for every call z = F(a; θ) of an operation that reads scored parameters θ upon data a. No sample's
gradient is formed, and no weight's either: the backward pass computes the gradients of outputs
alone, and each is met as it arrives. Exact where sample i's rows of z lead to ℓ_i only. That is
tested once for every kind of graph, by a backward pass with random signs s:

    b(s)_i = s_i b_i                 for all i, or the samples interact

The name is of Goodfellow, "Efficient Per-Example Gradient Computations", arXiv 1510.01799, and of
Li, Tramèr, Liang and Hashimoto, "Large Language Models Can Be Strong Differentially Private
Learners", arXiv 2110.05679, who take the norms of per-sample gradients in this way.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from gradmimic.direction import Direction, Subset
from gradmimic.engines import samples
from gradmimic.engines.arguments import Read
from gradmimic.engines.base import Pass
from gradmimic.engines.graph import Walk, walk
from gradmimic.engines.layout import Layout, inner, per_sample
from gradmimic.engines.one_backward import Kept, has_room, one_backward
from gradmimic.engines.operations import Call
from gradmimic.engines.recorder import Recorder
from gradmimic.engines.transposed import transposed_derivative
from gradmimic.errors import GradMimicError, LossError, UnsupportedOperationError, UsageError

Backward = Literal["auto", "once", "twice", "never"]
HALF_SCALE = 2.0**12
"""What losses are multiplied with while their gradients are half precision, as a scaler would."""


class GhostEngine(Pass):
    """Output gradients, and layers applied with the direction.

    Args:
        subset: the scored parameters.
        direction: v, over the same names.
        backward: ``"once"`` keeps the output gradients, so that :meth:`weighted` needs no second
            backward pass; ``"twice"`` keeps none; ``"auto"`` keeps them where memory allows and
            most of what trains is scored; ``"never"`` lets even the graph go, where scores are all
            that is wanted.

    Example:
        >>> from gradmimic.direction import choose, direction
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> subset = choose(layer)
        >>> v = direction(subset, {"weight": layer.weight.detach() + 1})
        >>> with GhostEngine(subset, v) as engine:
        ...     losses = layer(torch.tensor([[1.0, 2.0]])).squeeze(1)
        >>> engine.derivative(losses)
        tensor([3.])
    """

    def __init__(self, subset: Subset, direction: Direction, backward: Backward = "twice") -> None:
        self._subset, self._direction = subset, direction
        self._training = self._trained(backward)
        self._backward_is = backward
        self._last = False  # whether nothing needs the graph any more
        self._kept: Kept | None = None
        self._keep = False
        self._losses: Tensor | None = None
        self._restore = ExitStack()
        self._recorder: Recorder | None = None
        self._normed: list[tuple[str, Any]] = []  # batch norms over the batch, their nodes
        self._sums: list[Tensor] = []  # of each call, the derivatives that go by way of it
        self._probes: samples.Sums = {}  # while it is not known where the samples are
        self._fits: list[list[list[Layout]]] = []
        self._chosen: samples.Layouts | None = None
        self._b, self._scale = 0, 1.0
        self._failed: GradMimicError | None = None
        self.stand_ins: dict[str, Tensor] = {}

    def _trained(self, backward: Backward) -> dict[str, nn.Parameter]:
        """Return all that trains, where the step may be formed in one backward pass."""
        model, scored = self._subset.model, self._subset.parameters
        if model is None or backward in ("twice", "never"):
            return {}
        names = {id(p): name for name, p in scored.items()}
        trained = {
            names.get(id(p), name): p for name, p in model.named_parameters() if p.requires_grad
        }
        size = sum(p.numel() for p in trained.values())
        own = sum(p.numel() for name, p in trained.items() if name in scored)
        return trained if backward == "once" or 2 * own > size else {}

    def __enter__(self) -> "GhostEngine":
        if self._subset.sharded:
            raise UnsupportedOperationError(
                "FSDP2 shards the scored parameters, so no layer can be applied with v. Score a "
                "linear head (params='head'), use engine='secant', or leave the scored layers out "
                "of fully_shard."
            )
        self._restore.enter_context(torch.enable_grad())
        chosen = Counter(use.name for use in self._subset.uses)
        uses, swapped = samples.count_uses(self._subset.model), {}
        for name, parameter in self._subset.parameters.items():
            if not parameter.requires_grad:
                swapped[name] = parameter.detach().requires_grad_()
            elif uses[id(parameter)] > chosen[name]:  # tied, and not scored everywhere
                swapped[name] = parameter.view_as(parameter)
        self.stand_ins = {**self._subset.parameters, **swapped}
        if swapped:
            self._restore.enter_context(self._subset.swapped(self.stand_ins))
        v = self._direction.tensors
        reads = {id(p): Read(p, None, name) for name, p in self._training.items()}
        for name, tensor in self.stand_ins.items():
            reads[id(tensor)] = Read(tensor, v[name], name)
        self._recorder = Recorder(reads.values(), self._arrived)
        fast = torch.backends.mha.get_fastpath_enabled()  # it would bypass torch functions
        self._restore.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        self._watch_modules()
        self._restore.enter_context(self._recorder)
        return self

    def _watch_modules(self) -> None:
        model, recorder = self._subset.model, self._recorder
        assert recorder is not None  # noqa: S101
        if model is None:
            return
        hook = model.register_forward_pre_hook(
            lambda _model, args, named: recorder.see_input([*args, *named.values()]),
            with_kwargs=True,
        )
        self._restore.callback(hook.remove)
        for name, module in samples.over_the_batch(model):
            watch = module.register_forward_hook(
                lambda _module, _args, out, name=name: self._normed.append((name, out.grad_fn))
            )
            self._restore.callback(watch.remove)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore.close()
        if error is not None:
            self.close()

    def derivative(self, losses: Tensor) -> Tensor:
        """Return ``[b]``, the losses' derivative along v."""
        (found,) = self._take([(losses, None)])
        return found

    def along(self, values: Tensor) -> Tensor:
        """Return the derivative of each number of a tensor, by differentiating twice."""
        with torch.enable_grad():
            flat = values.flatten()
        try:
            return transposed_derivative(flat, self.stand_ins, self._direction).view_as(values)
        except (RuntimeError, NotImplementedError) as error:
            raise UnsupportedOperationError(
                f"The model cannot be differentiated twice, so a sample's score has no parts: "
                f"{error} Use engine='forward' or engine='secant', or ask for no scores of tokens."
            ) from error

    def derivative_beside(
        self, losses: Tensor, canaries: Tensor, rows: Sequence[int] | None
    ) -> Tensor:
        """Return ``[b + c]``; canaries of one sample never share a backward pass."""
        if len(canaries) == 0:
            return self.derivative(losses)
        b = len(losses)
        if rows is not None and list(rows) == list(range(b, b + len(canaries))):
            return super().derivative_beside(losses, canaries, rows)  # each is a row of its own
        if rows is None or len(rows) != len(canaries):
            raise LossError(
                "engine='ghost' must know of which sample of the batch each canary was made: pass "
                "CanaryLosses(…, rows=…), one position in the batch for each, as Canaries does; or "
                "use engine='forward'."
            )
        turns: Counter[int] = Counter()
        numbers = []  # of the pass in which each canary takes part
        for row in rows:
            numbers.append(turns[row])
            turns[row] += 1
        found = torch.zeros(len(losses) + len(canaries), device=losses.device)
        parts = [
            [c for c, number in enumerate(numbers) if number == n] for n in range(max(numbers) + 1)
        ]
        at = [torch.tensor([rows[c] for c in part], device=losses.device) for part in parts]
        with torch.enable_grad():
            derivatives = self._take(
                [
                    (losses, None),
                    *((canaries[part], own) for part, own in zip(parts, at, strict=True)),
                ]
            )
        found = found.to(derivatives[0].dtype)
        found[: len(losses)] = derivatives[0]
        for part, own in zip(parts, derivatives[1:], strict=True):
            found[[len(losses) + c for c in part]] = own
        return found

    def _take(self, parts: list[tuple[Tensor, Tensor | None]]) -> list[Tensor]:
        """Return the derivatives of vectors of losses, each of all samples or of some rows."""
        recorder = self._recorder
        if recorder is None:
            raise UsageError(
                "This forward pass is over: it was weighed already. Call weigh once after each "
                "`with` block."
            )
        losses = parts[0][0]
        if not losses.requires_grad:
            raise LossError(
                "The losses do not depend on the scored parameters. Expected losses computed from "
                "the output of this model in this `with` block, not detached."
            )
        b = len(losses)
        if b == 0:
            return [own.detach().clone() for own, _ in parts]
        self._b = b
        half = any(torch.float16 in call.dtypes for call in recorder.calls)
        self._scale = HALF_SCALE if half else 1.0
        graph = self._walk([own for own, _ in parts])
        self._check(graph)
        self._fits = samples.possible(recorder.calls, b)
        self._chosen = samples.recall(self._subset.model, graph.kind, self._fits, b)
        found = []
        kept = Kept(self._training, self._scale) if self._keep else None
        for own, rows in parts:
            first, final = own is losses, own is parts[-1][0]
            self._kept = kept if first else None
            looked, certain = self._chosen is None, False
            if self._chosen is None:
                self._chosen, certain = self._look(own, graph)
            # a pass of a new kind may yet be refused, and another engine then needs its graph
            self._last = self._backward_is == "never" and final and not looked
            self._backward(own, torch.ones_like(own), graph)
            if certain:
                samples.keep(self._subset.model, graph.kind, self._chosen, b)
            total = self._total(losses)
            found.append(total if rows is None else total[rows])
        self._kept, self._losses = kept, losses
        return found

    def _walk(self, losses: list[Tensor]) -> Walk:
        """Walk to all calls where their gradients are kept, else to the scored ones."""
        recorder = self._recorder
        assert recorder is not None  # noqa: S101
        self._keep = bool(self._training) and recorder.once
        if self._keep and (self._backward_is == "once" or has_room(recorder.calls)):
            graph = walk(losses, recorder.calls)
            if not any(leaf.requires_grad for leaf in graph.leaves):
                return graph
        self._keep = False
        return walk(losses, [call for call in recorder.calls if call.is_scored])

    def _backward(self, losses: Tensor, seeds: Tensor, graph: Walk) -> None:
        """Let every output gradient arrive; the gradients of weights are not on the way."""
        self._sums, self._failed = [], None
        if not graph.lowest:
            return
        try:
            torch.autograd.grad(
                losses,
                graph.lowest,
                seeds * self._scale,
                retain_graph=not self._last,
                allow_unused=True,
            )
        except torch.utils.checkpoint.CheckpointError as error:
            raise UnsupportedOperationError(
                "A frozen scored parameter lies in a checkpointed part of the model, which saves "
                "other tensors when it runs again. Score other parameters with params=, or let it "
                "run without checkpointing."
            ) from error
        if self._failed is not None:
            raise self._failed

    def _arrived(self, index: int, k: int, gradient: Tensor) -> None:
        """Meet one output gradient."""
        recorder = self._recorder
        if self._b == 0 or recorder is None or self._failed is not None:
            return
        call = recorder.calls[index]
        if not call.is_scored and not self._keep:
            return
        try:
            with torch.no_grad():
                gradient = gradient.detach()
                if call.views[k] is not None:
                    gradient = gradient.contiguous().as_strided(*call.views[k])
                if self._chosen is None:
                    places = self._fits[index][k]
                    self._probes[index, k] = samples.probed(gradient, index, places, self._b)
                else:
                    self._meet(call, k, gradient, self._chosen[index][k])
            if self._last and len(call.shapes) == 1:
                call.let_go()
        except GradMimicError as error:  # raised from a hook, it would be torch's
            self._failed = error

    def _meet(self, call: Call, k: int, gradient: Tensor, place: Layout) -> None:
        kept = self._kept
        if call.scales_only and (place != "columns" or call.along == -1):
            self._meet_norm(call, place, gradient, kept)
            return
        if call.is_linear and kept is not None and call.is_scored:
            tangent = kept.applied(call, gradient)
        else:
            if kept is not None:
                kept.calls.append((call, k, gradient, None))
            tangent = call.tangents()[k] if call.is_scored else None
        if tangent is not None:
            self._sums.append(inner(gradient, tangent, place, self._b))

    def _meet_norm(self, call: Call, place: Layout, gradient: Tensor, kept: Kept | None) -> None:
        """Form a norm's gradients per sample: its few parameters have fewer numbers than b."""
        normal = call.normalized()
        for read in call.reads:
            # the weight comes first, and the normalized input is needed no more
            x = normal.mul_(gradient) if call.role(read) == "weight" else gradient
            if call.along == 1:
                x = x.movedim(1, -1)
            rows = per_sample(x, place, self._b, read.tensor.ndim)  # [b, *shape]
            if kept is not None:
                kept.sums.append((read, rows))
            if read.tangent is not None:
                self._sums.append(rows.flatten(1) @ read.tangent.flatten().to(rows.dtype))

    def _look(self, losses: Tensor, graph: Walk) -> tuple[samples.Layouts, bool]:
        """Find where the samples are, or that they interact, in two passes for that alone."""
        calls, b = self._calls, self._b
        own = [(c, f) for c, f in zip(calls, self._fits, strict=True) if c.is_scored or self._keep]
        samples.refuse_without_samples([c for c, _ in own], [f for _, f in own], b)
        found = []
        for seeds in (samples.signs(b).to(losses), torch.ones_like(losses)) if b > 1 else ():
            self._probes = {}
            self._backward(losses, seeds, graph)
            found.append(self._probes)
        signed, plain = found or ({}, {})
        return samples.tell(calls, self._fits, plain, signed, b)

    @property
    def _calls(self) -> list[Call]:
        return self._recorder.calls if self._recorder is not None else []

    def _total(self, losses: Tensor) -> Tensor:
        wide = torch.promote_types(losses.dtype, torch.float32)
        total = torch.zeros(self._b, dtype=wide, device=losses.device)
        for own in self._sums:
            total += own.to(total)
        return total / self._scale

    def _check(self, graph: Walk) -> None:
        """Refuse what would give wrong scores."""
        recorder = self._recorder
        assert recorder is not None  # noqa: S101
        if recorder.refused is not None:
            raise recorder.refused
        for name, tensor in self.stand_ins.items():
            if get_gradient_edge(tensor).node in graph.nodes:
                raise UnsupportedOperationError(
                    f"{name} reaches the losses by a way that engine='ghost' does not see: outside "
                    "the `with` block, or inside a compiled, scripted or custom autograd function. "
                    "Score other parameters with params=, or use engine='forward'."
                )
        if recorder.ungraded is not None and any(
            "CheckpointFunction" in node.name() for node in graph.nodes
        ):
            raise UnsupportedOperationError(
                f"{recorder.ungraded} is used under reentrant checkpointing, which hides it. Pass "
                "use_reentrant=False to checkpoint."
            )
        recorded = {edge.node for call in recorder.calls for edge in call.edges}
        for name, node in self._normed:
            if node in graph.above or node in recorded:
                raise UnsupportedOperationError(
                    f"{name} normalizes by the statistics of the batch, so samples interact. Use "
                    "engine='forward', or put it into eval mode."
                )

    def weighted(self, losses: Tensor, weights: Tensor) -> Tensor:
        """Return Σ_i w_i ℓ_i, to be differentiated in one backward pass where it can be."""
        kept, recorder = self._kept, self._recorder
        if kept is None or recorder is None or self._chosen is None or losses is not self._losses:
            return super().weighted(losses, weights)
        places = {
            (call, k): place
            for call, own in zip(recorder.calls, self._chosen, strict=True)
            for k, place in enumerate(own)
        }
        return one_backward(losses, weights, kept, places)

    def close(self) -> None:
        """Drop what the pass holds."""
        self._kept = self._losses = None
        if self._recorder is not None:
            self._recorder.stop()
        self._recorder = None
        self._normed, self._sums, self._probes, self.stand_ins = [], [], {}, {}
