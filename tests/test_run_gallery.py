"""What a run puts into its gallery, against its tables and its selection."""

import json
import re

import numpy as np
import pytest

pytest.importorskip("jinja2", reason="needs the extra 'report'")
pytest.importorskip("altair", reason="needs the extra 'report'")
pytest.importorskip("PIL", reason="needs the extra 'images'")

from blobs import blob_keys, run_blobs, write_blobs, write_pictures

from gradmimic.curate.review import log_key
from gradmimic.log import ScoreLog
from gradmimic.run.config import RunConfig
from gradmimic.run.inputs import load_inputs


def columns(folder):
    """What stands in the page for its script."""
    html = (folder / "report.html").read_text(encoding="utf-8")
    (text,) = re.findall(r'id="gallery-data">(.*?)</script>', html, re.DOTALL)
    return json.loads(text)


def by_score(table):
    return table.sort_by([("score", "ascending"), ("sample_id", "ascending")])


def test_labelled_samples_stand_with_their_labels(tmp_path):
    write_blobs(tmp_path)
    _, table = run_blobs(tmp_path, report=True)
    shown, ranked = columns(tmp_path / "run"), by_score(table)
    assert shown["run"] == "run"
    assert shown["log"] == log_key(ScoreLog.read(tmp_path / "run" / "log"))
    assert [int(one) for one in shown["ids"]] == ranked["sample_id"].to_pylist()
    assert [bit == "1" for bit in shown["keep"]] == ranked["keep"].to_pylist()
    samples = load_inputs(RunConfig(**blob_keys(tmp_path))).train
    row_of = {sample_id: row for row, sample_id in enumerate(samples.ids.tolist())}
    rows = [row_of[int(one)] for one in shown["ids"]]
    assert shown["given"] == samples.labels[rows].tolist()
    assert shown["true"] == samples.true_labels[rows].tolist()
    assert [bit == "1" for bit in shown["bad"]] == (samples.labels != samples.true_labels)[
        rows
    ].tolist()
    assert np.mean(np.array(shown["suggested"]) == shown["true"]) > 0.9
    kept = ranked.filter(ranked["keep"])["score"].to_numpy()
    removed = ranked.filter(np.logical_not(ranked["keep"].to_numpy()))["score"].to_numpy()
    assert shown["threshold"] == (kept.min() if kept.min() > removed.max() else None)


def test_pictures_of_a_folder_are_those_of_their_ids(tmp_path):
    write_pictures(tmp_path / "pictures")
    run_blobs(
        tmp_path, data=str(tmp_path / "pictures"), labels=..., test=..., test_labels=...,
        trusted="0:8", image_size=6, epochs=1, report=True,
    )  # fmt: skip
    shown = columns(tmp_path / "run")
    assert set(shown["pictures"]) == {str(row) for row in range(len(shown["ids"]))}
    for row, uri in shown["pictures"].items():
        assert uri.startswith("data:image/png;base64,")
        colour = shown["ids"][int(row)].partition("/")[0]
        assert mean_colour(uri) == colour


def mean_colour(uri):
    """Red or blue, whichever there is more of."""
    import base64
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    red, _, blue = np.asarray(image).reshape(-1, 3).mean(axis=0)
    return "red" if red > blue else "blue"


def test_pairs_stand_with_their_captions_and_pictures(tmp_path):
    from clip_runs import POOL, pairs, run_pairs, write_pools

    write_pools(tmp_path)
    _, table = run_pairs(tmp_path, report=True)
    shown, ranked = columns(tmp_path / "run"), by_score(table)
    assert shown["ids"] == ranked["sample_id"].to_pylist()
    assert (shown["noun"], shown["given"]) == ("pairs", None)
    written = {uid: caption for uid, _, caption in pairs(POOL, seed=1)}
    captions = {one: shown["texts"][str(row)] for row, one in enumerate(shown["ids"])}
    swapped = {one for one, bit in zip(shown["ids"], shown["bad"], strict=True) if bit == "1"}
    # Captions as they were trained on: those that were not swapped are the pool's own.
    assert swapped >= {one for one, caption in captions.items() if caption != written[one]}
    assert len(swapped) == int(0.3 * len(shown["ids"]))
    assert set(shown["pictures"]) == {str(row) for rows in shown["ends"].values() for row in rows}
    assert set(shown["facts"]["CLIP score"]) == set(shown["pictures"])
    assert all(-1 <= cosine <= 1 for cosine in shown["facts"]["CLIP score"].values())
