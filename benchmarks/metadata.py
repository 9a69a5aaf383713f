"""What metadata add to stage 2: the published filter of DataComp on up to 12.8 million samples.

    log of one visit per sample, as a pass of scoring writes it, and metadata as DataComp publishes
    them, a Parquet file per 10,000 samples: uid, url, text, width, height, two CLIP scores, faces
      → captions and pictures large enough, CLIP score's top 30 %, less the bottom 15 % by mimic
      → selection as sorted Parquet with reasons → DataComp

Beside it the same log by a rule, without metadata. Each size runs in a process of its own, whose
whole life is timed, imports included; files are made once and kept.

Run: python benchmarks/metadata.py [--sizes 1 3.2 12.8] [--folder FOLDER]
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import stage2
from rich.console import Console
from rich.table import Table

ROWS_PER_FILE = 10_000
CLIP = "clip_l14_similarity_score"
WHERE = "length(text) > 5 and least(original_width, original_height) >= 200"
MEMORY_LIMIT = "1500MB"  # of DuckDB; the process takes some more


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", type=float, default=[1, 3.2, 12.8])
    parser.add_argument("--folder", type=Path, default=Path("metadata-pools"))
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(selected(options.one, options.plain)))
        return
    from harness import save

    rows = []
    for size in options.sizes:
        n = round(size * 1e6)
        pool = options.folder / str(n)
        if not pool.exists():
            write_pool(pool, n)
        for plain in (True, False):
            load = os.getloadavg()[0]  # what else the machine does
            own = in_own_process(pool, plain)
            rows.append({"samples": n, "metadata": not plain, "load_before": load, **own})
        show(rows)
    print(f"saved to {save('metadata', rows, 'python benchmarks/metadata.py')}")


def selected(pool: Path, plain: bool) -> dict[str, Any]:
    """Select once, and tell what it took."""
    from gradmimic import select

    out, subset = pool / "selection.parquet", pool / "subset.npy"
    filters: dict[str, Any] = {
        "where": WHERE,
        "top": {CLIP: 0.3},
        "drop_bottom": {"mimic": 0.15},
        "metadata": pool / "metadata",
    }
    start = time.perf_counter()
    selection = select(
        pool / "log",
        out=out,
        memory_limit=MEMORY_LIMIT,
        temp_folder=pool,
        **({} if plain else filters),
    )
    done = time.perf_counter()
    kept = selection.to_datacomp(subset)
    end = time.perf_counter()
    reasons = selection.reasons()
    for file in (out, subset):
        file.unlink()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "select_s": done - start,
        "datacomp_s": end - done,
        "cpu_s": usage.ru_utime + usage.ru_stime,  # of both cores, whatever else they do
        "kept": kept,
        "reasons": reasons,
        "log_bytes": _size(pool / "log"),
        "metadata_bytes": _size(pool / "metadata"),
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def in_own_process(pool: Path, plain: bool) -> dict[str, Any]:
    """Run one size in a new process, and time all of it."""
    command = [sys.executable, __file__, "--one", str(pool), *(["--plain"] if plain else [])]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)  # noqa: S603
    return {"total_s": time.perf_counter() - start, **json.loads(done.stdout)}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table so far."""
    table = Table()
    for name in ("samples", "metadata", "select s", "export s", "total s", "CPU s", "peak GB"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['samples']:,}", "yes" if row["metadata"] else "no", f"{row['select_s']:.1f}",
            f"{row['datacomp_s']:.1f}", f"{row['total_s']:.1f}", f"{row['cpu_s']:.1f}",
            f"{row['peak_bytes'] / 1e9:.2f}",
        )  # fmt: skip
    Console().print(table)


def write_pool(pool: Path, n: int) -> None:
    """Write a log of one visit per sample, and metadata of these samples in another order."""
    temporary = pool.with_name(f"{pool.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "metadata").mkdir(parents=True)
    stage2.VISITS = 1
    stage2.write_log(temporary / "log", n, canaries=False)
    chance = np.random.default_rng(0)
    raw = chance.integers(0, 256, (n, 16), dtype=np.uint8)  # the ids that write_log drew
    order = chance.permutation(n)
    letters = chance.integers(97, 123, 1 << 20, dtype=np.uint8)
    for number, start in enumerate(range(0, n, ROWS_PER_FILE)):
        rows = raw[order[start : start + ROWS_PER_FILE]]
        m = len(rows)
        faces = chance.integers(0, 3, m)
        table = pa.table(
            {
                "uid": pa.array([bytes(row).hex() for row in rows]),
                "url": _texts(chance.integers(60, 120, m), letters),
                "text": _texts(chance.integers(0, 120, m), letters),
                "original_width": chance.integers(100, 1500, m),
                "original_height": chance.integers(100, 1500, m),
                "clip_b32_similarity_score": chance.normal(0.2, 0.05, m).astype(np.float32),
                CLIP: chance.normal(0.2, 0.05, m).astype(np.float32),
                "face_bboxes": pa.array([[[0.1, 0.2, 0.3, 0.4]] * k for k in faces.tolist()]),
                "sha256": _texts(np.full(m, 64), letters[number % 977 :]),
            }
        )
        pq.write_table(table, temporary / "metadata" / f"{number:08d}.parquet")
    temporary.rename(pool)


def _texts(lengths: np.ndarray[Any, np.dtype[np.int64]], letters: Any) -> pa.Array:
    """Return strings of these lengths, cut from one stretch of letters."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    data = np.resize(letters, offsets[-1])
    return pa.StringArray.from_buffers(
        len(lengths), pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(data))
    )


def _size(folder: Path) -> int:
    """Return the bytes of a folder."""
    return sum(file.stat().st_size for file in folder.iterdir())


if __name__ == "__main__":
    main()
