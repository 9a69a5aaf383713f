"""Stage 2: from all visits of all samples to one decision per sample.

    mean        p_clean_i = rule(x̄)_i             x̄_i = (1/|T_i|) Σ_{t ∈ T_i} x_{i,t}
    majority    p_clean_i = (1/|T_i|) Σ_{t ∈ T_i} vote_{i,t},  vote_{i,t} = [rule(x_{·,t})_i ≥ ½]
    one_coin, dawid_skene      p_clean_i = P(keep | all votes on i), a label model's posterior

    stacked     as mean, of log-odds b + Σ_j w_j z_ij over several scorers j, learned from canaries

and keep_i = [p_clean_i ≥ ½], or for the rule ``calibrated`` what it decides; and of these the ones
that no condition and no ranking speaks against. T_i are the visits of
sample i: where it was not visited it abstains. x is the score, or for the rule ``one_over_b`` the
relative weight w·b. A tie among the votes keeps the sample, since removing takes evidence against
it. What a person decided in the report wins over all of that.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from gradmimic.curate.decide import Aggregate, Log, Rule, decide
from gradmimic.curate.export import write_parquet
from gradmimic.curate.review import Review, as_review, check_log, reviewed, reviewed_batches
from gradmimic.curate.rows import schema
from gradmimic.curate.selection import Selection
from gradmimic.log_reader import LogReader


def select(
    log: Log,
    rule: Rule | None = None,
    *,
    aggregate: Aggregate = "mean",
    scorer: str | Sequence[str] = "mimic",
    voters: Mapping[str, Selection] | None = None,
    where: str | Sequence[str] | None = None,
    top: Mapping[str, float] | None = None,
    drop_bottom: Mapping[str, float] | None = None,
    metadata: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
    metadata_id: str = "uid",
    review: Review | Mapping[Any, Any] | str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    backend: Any = None,
    memory_limit: str | None = None,
    temp_folder: str | os.PathLike[str] | None = None,
) -> Selection:
    """Decide for every logged sample whether to keep it; canaries are left out.

    keep_i = [p_clean_i ≥ ½], or above the canaries' threshold for the rule ``calibrated``, with
    p_clean from the rule applied to the means over the visits
    (``aggregate="mean"``), or from the votes at every visit: their share (``"majority"``), or the
    posterior of a label model that weighs voters by how often they are right.

    Args:
        log: a ``ScoreLog``, its folder, or a table with its columns, e.g. from
            ``log.scan(filter=…)`` to use some epochs only. One that is still being written is
            read up to its last complete part.
        rule: ``"calibrated"`` learns from canaries what a bad sample scores; ``"mixture"``, two
            Gaussians, adapts to the share of bad samples; ``"two_means"`` splits at the widest
            divide; ``"one_over_b"``, the paper's, rejects about 40 % of any data; ``"none"`` keeps
            what conditions and rankings keep. None means ``"none"`` where there is a ranking, else
            ``"calibrated"`` where the log has canaries, else ``"mixture"``; the reasons say which.
        aggregate: ``"mean"``, which loses least, ``"majority"``, the paper's, or the label models
            ``"one_coin"`` and ``"dawid_skene"``. By votes, a rule is fitted to each epoch.
            ``"stacked"`` combines several scorers into one score, as canaries tell.
        scorer: whose rows to use; several scorers' votes count together, or they are combined.
        voters: selections from elsewhere by name, each with one more vote on the samples it has.
        where: conditions over columns of the metadata and the log, e.g. ``"length(text) > 5 and
            original_width >= 200"``, see ``gradmimic.curate.condition``. What is kept fulfils all.
            The log's columns are its scorers, by their names, ``score``, ``p_clean`` and
            ``visits``.
        top: keep the share of samples with the highest values, e.g.
            ``{"clip_l14_similarity_score": 0.3}``, and none without a value. All samples with a
            value are ranked: all of the metadata by their columns, all of the log by a scorer.
        drop_bottom: remove the share with the lowest values, e.g. ``{"mimic": 0.15}``.
        metadata: Parquet files with more about each sample: paths, folders, patterns, or URLs.
        metadata_id: their column of sample ids.
        review: what a person decided, which wins: the file that the report exported, or a mapping
            from id to ``"keep"`` or ``"remove"``; see ``gradmimic.curate.review``.
        out: a Parquet file to write the selection to, which need not fit in memory. It appears
            whole or not at all.
        backend: None for DuckDB in this process; a Spark master's URL or a ``SparkSession``.
        memory_limit: of DuckDB, e.g. ``"2GB"``; None means 80 % of the machine's memory.
        temp_folder: where DuckDB may keep what does not fit; None means the system's.

    Returns:
        One row per sample, sorted by id; ``p_clean`` in [0, 1], higher is cleaner. It is the
        rule's posterior, or 0 or 1 for the hard rules, or the share of keep votes, or the label
        model's posterior. ``score`` is the mean over the (first) scorer's visits, or log-odds if
        combined. Where the scores cannot form two groups everything is kept, and the reasons say
        so. ``notes`` say which samples log and metadata do not have in common, and how scorers were
        combined.

    Raises:
        ConfigError: there is no such rule, aggregate, backend or column, they do not fit each
            other, or a condition cannot be read.
        LogError: the log is empty or damaged, has no such scorer, holds a visit twice, or a number
            that is not finite.
        DataError: there are no such metadata, ``out`` cannot be written, memory and temporary
            folder do not suffice, or the review cannot be read or is of another log.
        MissingExtraError: ``backend`` names Spark, and PySpark is not installed.

    Source:
        arXiv 2501.06708, the filtering stage: ``rule="one_over_b", aggregate="majority"``. Its
        filters of DataComp: ``top={"clip_l14_similarity_score": 0.3}, drop_bottom={"mimic": 0.15},
        metadata=…``.

    Example:
        >>> import tempfile
        >>> from gradmimic.log import ScoreLog
        >>> with ScoreLog(tempfile.mkdtemp()) as log:
        ...     log.append(
        ...         ["a", "b", "c", "d"], [1.0, -0.9, 1.2, -1.1], [0.4, 0.1, 0.4, 0.1], [0.0] * 4,
        ...         epoch=0, step=0,
        ...     )
        ...     select(log, "two_means").kept.tolist()
        ['a', 'c']
    """
    filters = None
    if where or top or drop_bottom or metadata is not None:
        from gradmimic.curate.filters import filters_of  # here, since it loads the query engine

        filters = filters_of(metadata, metadata_id, where, top, drop_bottom)
    decided = None if review is None else as_review(review)
    if decided is not None and not isinstance(log, pa.Table):
        check_log(decided, log if isinstance(log, LogReader) else LogReader(log))
    target = None if out is None else Path(out)
    # The review is put over the selection while it is copied: neither need fit in memory.
    first = target
    if target is not None and decided is not None:
        first = target.with_name(f".{target.name}.unreviewed")
    try:
        selection = decide(
            log,
            rule,
            aggregate=aggregate,
            scorer=scorer,
            voters=voters,
            filters=filters,
            out=first,
            backend=backend,
            memory_limit=memory_limit,
            temp_folder=temp_folder,
        )[0]
        if decided is None:
            return selection
        if target is None:
            return reviewed(selection, decided)
        batches = reviewed_batches(selection, decided)
        write_parquet(target, batches, schema(selection.id_type))
        return Selection.from_parquet(target, selection.notes)
    finally:
        if first is not None and first != target:
            first.unlink(missing_ok=True)
