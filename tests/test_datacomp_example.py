"""The worked example runs as its page says, from shards to a subset file."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gradmimic.curate import Selection
from gradmimic.curate.datacomp import read_datacomp

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "datacomp"


def run(command, folder):
    """Run a command of the page in a folder, and return what it says with single blanks."""
    program, *arguments = shlex.split(command)
    start = [sys.executable] if program == "python" else [sys.executable, "-m", program]
    arguments = [str(FOLDER.parents[1] / a) if a.startswith("examples/") else a for a in arguments]
    done = subprocess.run(
        [*start, *arguments], cwd=folder, capture_output=True, text=True, timeout=500,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return " ".join(done.stdout.split())


def commands():
    block = re.search(r"```bash\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    return block[1].splitlines()


@pytest.mark.slow
def test_the_commands_of_the_page_lead_to_a_subset(tmp_path):
    make, train, score, select, back = commands()
    run(f"{make} --drawn 600", tmp_path)
    run(f"{train} --no-report", tmp_path)
    said = run(score, tmp_path)
    census = re.search(r"pairs what became of them the first (\d+) kept .* 400 total", said)
    scored = int(census[1])
    assert 300 < scored < 400
    assert "the shard is cut short or damaged (1 of 2)" in said
    said = run(select, tmp_path)
    assert f"Note: {400 - scored} of 400 samples of the metadata were never scored" in said
    assert "removed: among the " in said
    folder = tmp_path / "runs" / "datacomp"
    uids = read_datacomp(folder / "subset.npy").tolist()
    selection = Selection.from_parquet(folder / "selection.parquet")
    assert uids == selection.kept.tolist()
    swapped = set((folder / "swapped.txt").read_text().split())
    before = sum(uid in swapped for uid in selection.table["sample_id"].to_pylist()) / scored
    assert sum(uid in swapped for uid in uids) / len(uids) < 0.6 * before
    said = run(back, tmp_path)
    assert f"{len(uids)} pairs pass the selection while they are read, the same" in said


def test_a_pool_is_made_of_given_pairs(tmp_path):
    from PIL import Image

    def picture(shade):
        Image.new("L", (60, 40), shade).save(tmp_path / "one.jpg")
        return (tmp_path / "one.jpg").read_bytes()

    images = [picture(shade) for shade in range(250)]
    captions = [[f"shade {shade}", "grey"] for shade in range(250)]
    pq.write_table(pa.table({"image": images, "captions": captions}), tmp_path / "pairs.parquet")
    run(f"{commands()[0]} --pairs pairs.parquet", tmp_path)
    folder = tmp_path / "runs" / "datacomp"
    table = pq.read_table(folder / "metadata")
    swapped = set((folder / "swapped.txt").read_text().split())
    assert table.num_rows == 50
    assert 5 < len(swapped) < 25
    assert table["original_width"].unique().to_pylist() == [60]
    assert pq.read_table(folder / "trusted.parquet").num_rows == 200
    stats = json.loads((folder / "shards" / "00000000_stats.json").read_text())
    assert stats == {"count": 50, "successes": 50}


def test_flickr8k_makes_a_pool(shared_data, tmp_path):
    pairs = shared_data / "flickr8k" / "pairs.parquet"
    run(f"{commands()[0]} --pairs '{pairs}'", tmp_path)
    folder = tmp_path / "runs" / "datacomp"
    assert pq.read_table(folder / "metadata").num_rows == 600
    assert len(list((folder / "shards").glob("*.tar"))) == 3


def test_the_example_stays_short():
    for script in FOLDER.glob("*.py"):
        assert len(script.read_text().splitlines()) < 100


def test_the_filters_of_the_page_on_scales_select_something(tmp_path):
    from gradmimic.cli.select import _shares

    run(f"{commands()[0]} --drawn 400", tmp_path)
    metadata = tmp_path / "runs" / "datacomp" / "metadata"
    page = (FOLDER.parents[1] / "docs" / "datacomp.md").read_text()
    conditions = re.findall(r'--where "([^"]+)"', page)
    assert len(conditions) >= 3
    for condition in conditions:
        small = condition.replace("200", "60")  # as the drawn pictures are
        kept = Selection.from_metadata(metadata, where=small).kept
        assert 100 < len(kept) <= 200
    for option, text in re.findall(r"(--top|--drop-bottom) ([a-z0-9_]+:0\.\d+)", page):
        assert _shares(option, [text])
