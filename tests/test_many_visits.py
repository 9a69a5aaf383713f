"""Stage 2 over more visits of a sample than a byte counts."""

from pathlib import Path

import numpy as np
import pytest

from gradmimic import ScoreLog, select


@pytest.mark.parametrize(("aggregate", "epochs"), [("mean", 130), ("stacked", 40)])
def test_counts_every_visit(tmp_path: Path, aggregate: str, epochs: int) -> None:
    chance = np.random.default_rng(0)
    bad = np.arange(40) < 10
    even = np.full(40, 1 / 40)
    with ScoreLog(tmp_path) as log:
        for epoch in range(epochs):
            for scorer in "abcd":
                scores = chance.normal(np.where(bad, -3.0, 3.0), 1.0)
                facts = {"epoch": epoch, "step": epoch, "scorer": scorer}
                log.append(np.arange(40), scores, even, even, **facts)
                canaries = chance.normal(-3.0, 1.0, 40)
                kinds = ["swapped"] * 40
                log.append(np.arange(40), canaries, even * 0, even, canary=kinds, **facts)
    scorers = list("abcd") if aggregate == "stacked" else "a"
    found = select(tmp_path, "two_means", scorer=scorers, aggregate=aggregate)
    assert found.removed.tolist() == np.flatnonzero(bad).tolist()
    assert set(found.table["visits"].to_pylist()) == {epochs * len(scorers)}
