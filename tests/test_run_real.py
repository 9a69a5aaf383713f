"""Whole runs on real data, which is never part of the repository."""

import pyarrow.parquet as pq
import pytest
from blobs import read_outputs
from test_report import data_in

from gradmimic.curate import Selection
from gradmimic.run.config import RunConfig
from gradmimic.run.job import run_job

pytest.importorskip("vl_convert", reason="needs the extra 'report'")
pytestmark = pytest.mark.slow


def run_real(tmp_path, **keys):
    config = RunConfig(out=str(tmp_path / "run"), **keys)
    run_job(config)
    metrics, table = read_outputs(config.out)
    assert len(Selection(table)) == metrics["samples"]
    return metrics, (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_human_labels_of_cifar10(tmp_path, shared_data):
    data = shared_data / "cifar10n"
    metrics, _ = run_real(
        tmp_path,
        data=str(data / "features_train.npy"),
        labels="human_labels_train.npy",
        true_labels="clean_labels_train.npy",
        test=str(data / "features_test.npy"),
        test_labels="labels_test.npy",
        trusted="0:5000",
        trusted_labels="clean_labels_train.npy",
        epochs=2,
        batch_size=64,
        lr=1e-3,
    )
    assert metrics["samples"] == 25_000
    assert 0.16 < metrics["noise_rate"] < 0.18
    assert metrics["auroc"] > 0.75
    assert metrics["gain"] > 0


def test_textures(tmp_path, shared_data):
    metrics, page = run_real(
        tmp_path,
        data=str(shared_data / "dtd10" / "images.parquet"),
        labels="class_name",
        trusted=tuple(range(0, 1200, 2)),
        noise="symmetric",
        noise_rate=0.4,
        image_size=16,
        hidden=8,
        epochs=2,
        reference_epochs=8,
        lr=3e-3,
    )
    assert (metrics["samples"], metrics["noise_rate"]) == (600, 0.4)
    assert metrics["auroc"] > 0.55
    pictures = data_in(page, "gallery-data")["pictures"].values()
    assert len(pictures) > 50
    assert all(own.startswith("data:image/") for own in pictures)


def test_questions_to_a_bank(tmp_path, shared_data):
    data = shared_data / "banking77"
    metrics, page = run_real(
        tmp_path,
        data=str(data / "features_train.npy"),
        labels="train.parquet:category",
        show="train.parquet:text",
        test=str(data / "features_test.npy"),
        test_labels="test.parquet:category",
        trusted=tuple(range(0, 10_003, 4)),
        noise="pair",
        noise_rate=0.3,
        epochs=3,
        lr=0.01,
    )
    assert metrics["auroc"] > 0.8
    texts = pq.read_table(data / "train.parquet")["text"].to_pylist()
    shown = data_in(page, "gallery-data")["texts"].values()
    assert len(shown) > 50
    whole = [text for text in shown if not text.endswith(" …")]
    assert len(whole) > 50
    assert set(whole) <= set(texts)
