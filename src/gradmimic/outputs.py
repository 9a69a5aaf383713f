"""What a reference says of each sample, kept by its id: run it once, look it up at every step.

    z_i = f_ref(x_i) ∈ ℝ^K                        logits and embeddings, as they are
    z_i = log p_i − (1/K) Σ_k log p_ik            probabilities

A softmax forgets any constant added to all K logits, so probabilities give the logits up to their
mean; 0 is taken. Anything that fills a table ``id → K numbers`` is a reference then: another
architecture, a zero-shot classifier, neighbours, an ensemble. Values are float16 on disk and in
memory: 1.28 million samples of 1,000 classes are 2.6 GB.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gradmimic.errors import DataError, ParameterError
from gradmimic.id_rows import id_rows
from gradmimic.ids import Ids, as_ids
from gradmimic.outputs_file import Block, Kept, joined, read_table, spans, write_table

Kind = Literal["logits", "probabilities", "embeddings"]

_LEAST = 2.0**-24  # float16's smallest positive number: what a probability of 0 may have been


class Outputs:
    """A reference's outputs by sample id.

    Args:
        ids: ``[n]``, integers or strings, none twice.
        values: ``[n, K]`` numbers, a tensor, array or list; copied.
        kind: ``"logits"``; ``"probabilities"``, rows in [0, 1] that sum to 1, which become centred
            logarithms and from then on are ``"logits"``; or ``"embeddings"``.
        source: where they came from, for messages and the run's record.

    Attributes:
        ids: int64 array ``[n]``, or a list of n strings.
        width: K.
        kind: ``"logits"`` or ``"embeddings"``.
        source: as given.

    Raises:
        DataError: ids come twice, mix kinds, or are more or fewer than the rows; a value is NaN or
            too large for float16; or rows are no probabilities.
        ParameterError: the kind is unknown.

    Example:
        >>> outputs = Outputs(["a", "b"], [[0.5, 0.5], [0.2, 0.8]], kind="probabilities")
        >>> rows, known = outputs.of(["b", "c"])
        >>> rows
        tensor([[-0.6934,  0.6934],
                [ 0.0000,  0.0000]])
        >>> known
        tensor([ True, False])
    """

    ids: Ids
    width: int
    kind: Kept
    source: str

    def __init__(
        self,
        ids: Any,
        values: Tensor | npt.ArrayLike,
        kind: Kind = "logits",
        source: str = "memory",
    ) -> None:
        kept = _kept(kind)
        plain_ids, matrix = _as_ids(ids), _as_matrix(values)
        if len(matrix) != len(plain_ids):
            raise DataError(
                f"expected a row of outputs for each of the {len(plain_ids)} sample ids, got shape "
                f"{list(matrix.shape)}. Pass one row per id, in the same order."
            )
        half = torch.empty(*matrix.shape, dtype=torch.float16)
        for rows in spans(*matrix.shape):
            half[rows] = _as_half(matrix[rows], plain_ids[rows], kind)
        self._hold(plain_ids, half, kept, source)

    def _hold(self, ids: Ids, values: Tensor, kind: Kept, source: str) -> None:
        """Take ids and checked values as they are, without a copy."""
        if not values.numel():
            raise DataError(f"expected outputs of one sample or more, but {source} gives none.")
        self.ids, self.kind, self.source = ids, kind, source
        self.width = values.shape[1]
        self._values, self._rows = values, id_rows(ids)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Outputs({len(self):,} × {self.width} {self.kind} of {self.source})"

    def of(self, ids: Any) -> tuple[Tensor, Tensor]:
        """Look up the outputs of a batch.

        Args:
            ids: ``[b]``, a list, array or tensor on any device.

        Returns:
            The outputs ``[b, K]`` float32 and which ids are known ``[b]`` bool, both on the CPU.
            Rows of unknown ids are 0.

        Raises:
            DataError: the ids are integers where the outputs' are strings, or the other way round.
        """
        asked = _as_ids(ids)
        if len(asked) and isinstance(asked, list) != isinstance(self.ids, list):
            mine, yours = (
                f"{'string' if isinstance(some, list) else 'integer'} ids such as "
                f"{_plain(some[0])!r}"
                for some in (self.ids, asked)
            )
            raise DataError(
                f"the outputs of {self.source} have {mine}, but were asked for {yours}. Use the "
                "same ids for the outputs as for the training."
            )
        rows = torch.from_numpy(self._rows.find(asked))  # [b]
        known = rows >= 0
        if known.all():
            return self._values.index_select(0, rows).float(), known
        found = self._values.index_select(0, rows.clamp(min=0)).float()
        return found.masked_fill_(~known[:, None], 0.0), known

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a Parquet file, whole or not at all.

        Args:
            path: the file; its folder must exist.

        Raises:
            OSError: the folder or the disk does not take the file.
        """
        pieces = spans(*self._values.shape)
        blocks = (Block(self.ids[rows], self._values[rows]) for rows in pieces)
        write_table(path, blocks, self.kind, self.source)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Outputs":
        """Read what :meth:`write`, :func:`cache_outputs` or ``gradmimic cache`` wrote.

        Args:
            path: the file.

        Raises:
            DataError: the file is missing, damaged, of another format version, or something else.

        Example:
            >>> import tempfile
            >>> path = Path(tempfile.mkdtemp()) / "outputs.parquet"
            >>> Outputs([3, 1], [[0.5, 2.0], [1.0, 0.0]], source="last month").write(path)
            >>> Outputs.read(path)
            Outputs(2 × 2 logits of last month)
        """
        table = read_table(Path(path))
        outputs = cls.__new__(cls)
        try:
            outputs._hold(*table)
        except DataError as error:  # another program changed the rows
            raise DataError(f"{path}: {error}") from error
        return outputs


def cache_outputs(
    reference: nn.Module | Callable[[Any], Tensor],
    batches: Iterable[tuple[Any, Any]],
    path: str | os.PathLike[str] | None = None,
    *,
    kind: Kind = "logits",
    source: str | None = None,
) -> Outputs:
    """Run a reference over a data set once, and keep what it says of each sample.

    A module is run in eval mode and without gradients; afterwards each of its parts is back in the
    mode it was in.

    Args:
        reference: a module, or any function: ``inputs -> [b, K]``.
        batches: pairs ``(ids [b], inputs)``. The inputs are what the reference takes as its only
            argument; a tensor is moved to the module's device.
        path: a file to write as the batches come, whole or not at all, so that the outputs are in
            memory only once. Left out, nothing is written.
        kind: what the reference returns, see :class:`Outputs`.
        source: a name for messages; left out, that of the reference.

    Returns:
        The outputs, those of the file where there is one.

    Raises:
        DataError: the reference returns something other than finite numbers ``[b, K]`` of one K, or
            an id comes twice.
        ParameterError: the kind is unknown.
        OSError: the folder or the disk does not take the file.

    Example:
        >>> batches = [([1, 2], torch.eye(2)), ([7], torch.ones(1, 2))]
        >>> cache_outputs(nn.Linear(2, 3), batches)
        Outputs(3 × 3 logits of module Linear)
    """
    kept = _kept(kind)
    if source is None:
        what = "module" if isinstance(reference, nn.Module) else "function"
        source = f"{what} {getattr(reference, '__name__', type(reference).__name__)}"
    with evaluating(reference):
        blocks = _run(reference, batches, kind)
        if path is not None:
            write_table(path, blocks, kept, source)
            return Outputs.read(path)
        ids, values = joined(list(blocks) or [Block([], torch.empty(0, 0))])
    outputs = Outputs.__new__(Outputs)
    outputs._hold(ids, values, kept, source)
    return outputs


def _run(
    reference: nn.Module | Callable[[Any], Tensor], batches: Iterable[tuple[Any, Any]], kind: Kind
) -> Iterator[Block]:
    """Yield the outputs of each batch, checked."""
    device = None
    if isinstance(reference, nn.Module):
        device = next((parameter.device for parameter in reference.parameters()), None)
    seen: set[int | str] = set()
    width = None
    for number, (batch_ids, inputs) in enumerate(batches):
        ids = _as_ids(batch_ids)
        if device is not None and isinstance(inputs, Tensor):
            inputs = inputs.to(device)
        with torch.no_grad():
            values = reference(inputs)
        shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        if not isinstance(values, Tensor) or values.ndim != 2 or len(values) != len(ids):
            raise DataError(
                f"expected the reference to return a tensor [{len(ids)}, K] for the {len(ids)} ids "
                f"of batch {number}, got {shape}. Pass a function that does, such as "
                "lambda x: model(x).logits."
            )
        if values.shape[1] != (width or values.shape[1]):
            raise DataError(f"expected K = {width} as in batch 0, got {shape} in batch {number}.")
        width = values.shape[1]
        _check_new(ids, seen, number)
        if len(ids):
            yield Block(ids, _as_half(values, ids, kind))


def _check_new(ids: Ids, seen: set[int | str], number: int) -> None:
    """Refuse an id that came before, or one of another kind; remember the rest."""
    if seen and len(ids) and isinstance(ids, list) != isinstance(next(iter(seen)), str):
        raise DataError(
            f"batch {number} has {'string' if isinstance(ids, list) else 'integer'} sample ids, "
            "those before it had not. Use one kind throughout."
        )
    for sample_id in ids if isinstance(ids, list) else ids.tolist():
        if sample_id in seen:
            raise DataError(
                f"the sample id {sample_id!r} comes a second time in batch {number}. Pass every "
                "sample once: no sampler that repeats or pads."
            )
        seen.add(sample_id)


@contextmanager
def evaluating(reference: object) -> Iterator[None]:
    """Put a module in eval mode, and afterwards each of its parts back in its own."""
    parts = list(reference.modules()) if isinstance(reference, nn.Module) else []
    modes = [part.training for part in parts]
    try:
        if isinstance(reference, nn.Module):
            reference.eval()
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode


def _as_matrix(values: Any) -> Tensor | npt.NDArray[Any]:
    """Return numbers ``[n, K]``, still in their own type."""
    try:
        matrix: Tensor | npt.NDArray[Any]
        matrix = values.detach() if isinstance(values, Tensor) else np.asarray(values)
    except ValueError as error:
        raise DataError(f"expected outputs [n, K], got rows of several lengths: {error}") from error
    numbers = isinstance(matrix, Tensor) or matrix.dtype.kind in "biuf"
    if matrix.ndim != 2 or not numbers:
        raise DataError(
            f"expected numbers [n, K], got shape {list(matrix.shape)} of {matrix.dtype}."
        )
    return matrix


def _as_half(values: Tensor | npt.NDArray[Any], ids: Ids, kind: Kind) -> Tensor:
    """Check the outputs ``[b, K]`` of some samples; return z as float16 on the CPU."""
    if not isinstance(values, Tensor):
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is reported below
            values = torch.from_numpy(values.astype(np.float32))
    z = values.detach().to("cpu", torch.float32)
    if kind == "probabilities":
        z = _centred_logarithms(z, ids)
    half = z.half()
    finite = half.isfinite()
    if not finite.all():
        row, column = (~finite).nonzero()[0].tolist()
        raise DataError(
            f"the outputs of sample {_plain(ids[row])!r} hold {z[row, column].item():g} in column "
            f"{column}; expected finite numbers from −65504 to 65504, which float16 can hold. "
            "Leave that sample out, or scale the outputs down."
        )
    return half


def _centred_logarithms(p: Tensor, ids: Ids) -> Tensor:
    """Return log p − mean_k log p, having checked that rows are probabilities."""
    if p.shape[1] < 2:
        raise DataError(
            "expected the probabilities of two classes or more, got one column. Pass [1 − p, p] "
            "for the probability of one of two classes."
        )
    total = p.sum(1)
    right = (p >= 0).all(1) & ((total - 1).abs() <= 1e-2)  # NaN is not right either
    if not right.all():
        row = int((~right).nonzero()[0])
        raise DataError(
            f"the probabilities of sample {_plain(ids[row])!r} range from {p[row].min():.4g} to "
            f"{p[row].max():.4g} and sum to {total[row]:.4g}; expected numbers from 0 to 1 that "
            "sum to 1. Pass kind='logits' for what has not been through a softmax."
        )
    logarithms = p.clamp(min=_LEAST).log()
    return logarithms - logarithms.mean(1, keepdim=True)


def _as_ids(ids: Any) -> Ids:
    """Copy ids, of a tensor on any device too."""
    return as_ids(ids.detach().cpu() if isinstance(ids, Tensor) else ids)


def _plain(sample_id: Any) -> Any:
    """Return an id as Python prints it."""
    return sample_id.item() if isinstance(sample_id, np.generic) else sample_id


def _kept(kind: str) -> Kept:
    """Return what outputs of some kind are once they are kept."""
    if kind not in get_args(Kind):
        raise ParameterError(f"kind={kind!r} is unknown; expected {' or '.join(get_args(Kind))}.")
    return "embeddings" if kind == "embeddings" else "logits"
