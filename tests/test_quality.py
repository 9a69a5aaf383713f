"""A data set's quality: from logs, per class, side by side, and from the command line."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from gradmimic import ScoreLog, Selection, estimate_quality, select
from gradmimic.cli import app
from gradmimic.curate.quality import better
from gradmimic.errors import DataError, LogError


def write_log(folder, rho, *, n=4000, visits=2, canaries=True, seed=0, prefix=""):
    """A log of samples of which a share scores as the canaries do; returns which."""
    chance = np.random.default_rng(seed)
    bad = np.arange(n) < round(rho * n)
    ids = [f"{prefix}{i:05d}" for i in range(n)]
    with ScoreLog(folder) as log:
        for epoch in range(visits):
            scores = chance.normal(size=n) + np.where(bad, 0, 4)
            log.append(ids, scores, np.full(n, 1 / n), np.ones(n), epoch=epoch, step=epoch)
            if canaries:
                own = ids[:: max(1, n // 400)]
                c = len(own)
                log.append(
                    own, chance.normal(size=c), np.zeros(c), np.ones(c), epoch=epoch, step=epoch,
                    canary=["uniform/10"] * c,
                )  # fmt: skip
    return ids, bad


def test_the_share_of_useful_samples_comes_back_with_an_interval(tmp_path):
    ids, _bad = write_log(tmp_path, 0.3)
    labels = np.where(np.arange(4000) < 2400, "half bad", "clean")
    found = estimate_quality(tmp_path, labels=(ids, labels))
    assert found.quality.value == pytest.approx(0.7, abs=0.03)
    assert found.quality.low < 0.7 < found.quality.high
    assert found.noise_rate.low == pytest.approx(1 - found.quality.high)
    assert (found.samples, found.visits, found.calibrated) == (4000, 8000, True)
    assert list(found.auroc) == ["uniform/10"]
    assert len(found.auroc_by_visit) == 2
    assert found.by_class["half bad"].value == pytest.approx(0.5, abs=0.05)
    assert found.by_class["clean"].value == pytest.approx(1.0, abs=0.05)
    for share in found.by_class.values():
        assert 0 <= share.low <= share.value <= share.high <= 1
    assert json.loads(json.dumps(found.as_dict()))["quality"]["value"] == found.quality.value


def test_canaries_are_excluded_from_every_selection(tmp_path):
    ids, bad = write_log(tmp_path, 0.3)
    with_canaries = ScoreLog.read(tmp_path).scan()
    import pyarrow.compute as pc

    real = with_canaries.filter(pc.is_null(with_canaries["canary"]))
    for rule in ("mixture", "two_means", "one_over_b"):
        one, other = select(with_canaries, rule), select(real, rule)
        assert one.table.equals(other.table)
    calibrated = select(with_canaries)
    assert len(calibrated) == 4000
    assert set(calibrated.table["visits"].to_pylist()) == {2}
    assert (
        calibrated.table["reason"][0].as_py().startswith("removed: the mean score is below the can")
    )
    removed = ~calibrated.mask(ids)
    assert (removed == bad).mean() > 0.98


def test_without_canaries_the_estimate_is_a_mixtures_and_says_so(tmp_path):
    write_log(tmp_path, 0.3, canaries=False)
    found = estimate_quality(tmp_path)
    assert not found.calibrated
    assert found.quality.value == pytest.approx(0.7, abs=0.03)
    assert (found.quality.low, found.quality.high) == (0.0, 1.0)
    assert found.auroc == {}


@pytest.mark.parametrize(
    ("n", "visits", "scores"),
    [(1, 1, None), (3, 1, None), (50, 1, None), (200, 3, 0.5)],
)
def test_small_and_flat_logs_lose_nothing(tmp_path, n, visits, scores):
    ids = list(range(n))
    own = np.linspace(-1, 1, n) if scores is None else np.full(n, scores)
    with ScoreLog(tmp_path) as log:
        for epoch in range(visits):
            log.append(ids, own, [1 / n] * n, [1.0] * n, epoch=epoch, step=epoch)
            log.append(
                ids, own, [0.0] * n, [1.0] * n, epoch=epoch, step=epoch, canary=["uniform/2"] * n
            )
    found = estimate_quality(tmp_path)
    assert (found.quality.low, found.quality.high) == (0.0, 1.0)
    assert len(select(tmp_path).removed) == 0


def test_classes_must_be_known_for_every_sample(tmp_path):
    ids, _ = write_log(tmp_path, 0.3, n=400)
    with pytest.raises(DataError, match="00399"):
        estimate_quality(tmp_path, labels=(ids[:-1], ["a"] * 399))
    with pytest.raises(LogError, match="has no scorer 'loss'"):
        estimate_quality(tmp_path, scorer="loss")


@pytest.mark.slow
def test_a_million_classes_are_estimated_one_by_one(tmp_path):
    n = 10**6
    scores = np.where(np.arange(n) < n // 10, -1.0, 1.0) + np.linspace(0, 0.1, n)
    with ScoreLog(tmp_path, rows_per_part=n) as log:
        ids = np.arange(n)
        log.append(ids, scores, np.full(n, 1 / n), np.ones(n), epoch=0, step=0)
        own = [f"uniform/{n}"] * 1000
        log.append(
            ids[:1000], scores[:1000], np.zeros(1000), np.ones(1000), epoch=0, step=0, canary=own
        )
    found = estimate_quality(tmp_path, labels=(ids, ids))
    assert len(found.by_class) == n
    assert found.by_class[n - 1].value > found.by_class[0].value
    assert found.quality.value > 0.85


def test_logs_side_by_side(tmp_path):
    write_log(tmp_path / "good", 0.1)
    write_log(tmp_path / "bad", 0.5)
    write_log(tmp_path / "like", 0.11, seed=1)
    good, bad, like = (estimate_quality(tmp_path / name) for name in ("good", "bad", "like"))
    assert better(good, bad) is True
    assert better(bad, good) is False
    assert better(good, like) is None


def run(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        app([str(word) for word in words])
    assert stop.value.code == 0
    return capsys.readouterr().out


def test_quality_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ids, _ = write_log(tmp_path / "a" / "log", 0.1, prefix="x';--")
    write_log(tmp_path / "b", 0.5)
    labels = ["[red]&<b>" if i % 2 else "'; DROP TABLE x" for i in range(4000)]
    pq.write_table(pa.table({"sample_id": ids, "label": labels}), tmp_path / "a" / "labels.parquet")
    out = run(capsys, "quality", tmp_path / "b", tmp_path / "a", "--out", tmp_path / "q.json")
    assert f"{tmp_path / 'a'} is better than {tmp_path / 'b'}." in out
    assert "[red]&<b>" in out  # data are text, never markup
    assert "'; DROP TABLE x" in out
    found = json.loads((tmp_path / "q.json").read_text())
    assert found[str(tmp_path / "a")]["quality"]["value"] > 0.85
    assert set(found[str(tmp_path / "a")]["by_class"]) == {"[red]&<b>", "'; DROP TABLE x"}
    out = run(capsys, "quality", tmp_path / "b", tmp_path / "b")
    assert "cannot be told from" not in out  # one log twice is one row


def test_quality_reads_classes_from_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ids, _ = write_log(tmp_path / "log", 0.1, prefix="id-")
    table = pa.table({"the id": ids, 'class "c"': ["cat", "dog"] * 2000})
    pa.csv.write_csv(table, tmp_path / "classes.csv")
    out = run(
        capsys, "quality", tmp_path / "log", "--labels", tmp_path / "classes.csv",
        "--id-column", "the id", "--label-column", 'class "c"',
    )  # fmt: skip
    assert "cat" in out
    assert "dog" in out


def test_scorers_side_by_side(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    chance, n = np.random.default_rng(0), 2000
    with ScoreLog(tmp_path) as log:
        for scorer, apart in (("mimic", 4.0), ("blind", 0.0)):
            for kind, shift in ((None, apart), ("swapped", 0.0)):
                log.append(
                    range(n), chance.normal(size=n) + shift, [0.0] * n, [1.0] * n, epoch=0, step=0,
                    scorer=scorer, canary=kind and [kind] * n,
                )  # fmt: skip
    out = run(capsys, "quality", tmp_path, "--scorer", "mimic", "--scorer", "blind")
    assert re.search(r", mimic .* swapped 0\.99", out)
    assert re.search(r", blind .* 0\.000 – 1\.000 .* swapped 0\.[45]", out)


def test_select_from_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    ids, _bad = write_log(tmp_path / "run" / "log", 0.3, n=400)
    clip = Selection.from_scores(ids, np.linspace(0, 1, 400)).top(0.5)
    clip.to_parquet(tmp_path / "clip.parquet")
    out = run(
        capsys, "select", tmp_path / "run", "--out", tmp_path / "s.parquet",
        "--kept", tmp_path / "kept.parquet", "--removed", tmp_path / "removed.parquet",
    )  # fmt: skip
    assert "of 400 samples" in out
    assert "removed: the mean score is below the canaries' threshold" in out
    found = Selection.from_parquet(tmp_path / "s.parquet")
    assert pq.read_table(tmp_path / "kept.parquet")["sample_id"].to_pylist() == list(found.kept)
    assert pq.read_table(tmp_path / "removed.parquet").num_rows == len(found.removed)
    out = run(
        capsys, "select", tmp_path / "run", "--out", tmp_path / "v.parquet", "--rule", "mixture",
        "--aggregate", "dawid_skene", "--voter", tmp_path / "clip.parquet",
    )  # fmt: skip
    assert "of 3 votes were to keep" in out
    assert len(Selection.from_parquet(tmp_path / "v.parquet")) == 400


def test_select_writes_a_datacomp_subset(tmp_path, capsys):
    with ScoreLog(tmp_path / "log") as log:
        uids = [f"{i:032x}" for i in range(100)]
        log.append(uids, np.linspace(-1, 1, 100), [0.01] * 100, [1.0] * 100, epoch=0, step=0)
    run(
        capsys, "select", tmp_path / "log", "--out", tmp_path / "s.parquet",
        "--datacomp", tmp_path / "subset.npy",
    )  # fmt: skip
    subset = np.load(tmp_path / "subset.npy", allow_pickle=False)
    assert subset.dtype == np.dtype("u8,u8")
    kept = Selection.from_parquet(tmp_path / "s.parquet").kept
    assert subset.tolist() == [(int(uid[:16], 16), int(uid[16:], 16)) for uid in kept]
