"""What stage 2 costs: a synthetic log of up to 12.8 million samples with five visits each.

    log (64 million rows, ids of 32 hexadecimal digits, parts as ScoreLog writes them)
      → votes at every visit → label model → selection as sorted Parquet with reasons → DataComp

Goal: under 45 s and 2.5 GB on two cores, and linear in the number of samples. Each size runs in a
process of its own, whose whole life is timed, imports included; the log is made once and kept.

Run: python benchmarks/stage2.py [--sizes 1 3.2 12.8] [--folder FOLDER] [--canaries]
"""

import argparse
import itertools
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
from rich.console import Console
from rich.table import Table

VISITS = 5
BAD = 0.2  # share of samples with low scores
CANARIES = 0.05
BATCH, ROWS_PER_PART = 4096, 65_536
MEMORY_LIMIT = "1500MB"  # of DuckDB; the process takes some more
_DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)
_REPETITIVE = ["epoch", "step", "scorer", "batch_size", "canary", "rank"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", type=float, default=[1, 3.2, 12.8])
    parser.add_argument("--folder", type=Path, default=Path("stage2-logs"))
    parser.add_argument("--canaries", action="store_true", help="log canaries, and calibrate")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(stage2(options.one, options.canaries)))
        return
    from harness import save

    rows = []
    for size in options.sizes:
        n = round(size * 1e6)
        folder = options.folder / f"{n}{'-canaries' if options.canaries else ''}"
        if not folder.exists():
            write_log(folder, n, options.canaries)
        load = os.getloadavg()[0]  # what else the machine does
        measured = in_own_process(folder, options)
        rows.append({"samples": n, "visits": n * VISITS, "load_before": load, **measured})
        show(rows)
    more = " --canaries" if options.canaries else ""
    name = "stage2_canaries" if options.canaries else "stage2"
    print(f"saved to {save(name, rows, f'python benchmarks/stage2.py{more}')}")


def stage2(folder: Path, canaries: bool) -> dict[str, Any]:
    """Run stage 2 once, and tell what it took."""
    from gradmimic import select

    out, subset = folder / "selection.parquet", folder / "subset.npy"
    start = time.perf_counter()
    selection = select(
        folder,
        aggregate="mean" if canaries else "dawid_skene",
        out=out,
        memory_limit=MEMORY_LIMIT,
        temp_folder=folder,
    )
    selected = time.perf_counter()
    kept = selection.to_datacomp(subset)
    end = time.perf_counter()
    size = out.stat().st_size
    for file in (out, subset):
        file.unlink()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "select_s": selected - start,
        "datacomp_s": end - selected,
        "cpu_s": usage.ru_utime + usage.ru_stime,  # of both cores, whatever else they do
        "kept": kept,
        "parquet_bytes": size,
        "peak_bytes": usage.ru_maxrss * 1024,
    }


def in_own_process(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one size in a new process, and time all of it."""
    command = [sys.executable, __file__, "--one", str(folder)]
    start = time.perf_counter()
    done = subprocess.run(  # noqa: S603
        [*command, *(["--canaries"] if options.canaries else [])],
        stdout=subprocess.PIPE,
        check=True,
    )
    return {"total_s": time.perf_counter() - start, **json.loads(done.stdout)}


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table so far, and how time grows with size."""
    table = Table()
    for name in ("samples", "visits", "select s", "export s", "total s", "CPU s", "peak GB"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['samples']:,}", f"{row['visits']:,}", f"{row['select_s']:.1f}",
            f"{row['datacomp_s']:.1f}", f"{row['total_s']:.1f}", f"{row['cpu_s']:.1f}",
            f"{row['peak_bytes'] / 1e9:.2f}",
        )  # fmt: skip
    Console().print(table)
    for smaller, larger in itertools.pairwise(rows):
        more = (larger["samples"] - smaller["samples"]) / 1e6
        seconds = (larger["total_s"] - smaller["total_s"]) / more
        cpu = (larger["cpu_s"] - smaller["cpu_s"]) / more
        print(
            f"slope from {smaller['samples'] / 1e6:g} to {larger['samples'] / 1e6:g} million: "
            f"{seconds:.2f} s per million samples, {cpu:.2f} s of CPU"
        )


def write_log(folder: Path, n: int, canaries: bool) -> None:
    """Write a log in the form of ScoreLog's parts, faster than by appending batches."""
    from gradmimic.log_reader import FORMAT_VERSION, NORMS_KEY, VERSION_KEY, log_schema

    chance = np.random.default_rng(0)
    raw = chance.integers(0, 256, (n, 16), dtype=np.uint8)
    ids = np.empty((n, 32), np.uint8)  # as text
    ids[:, 0::2], ids[:, 1::2] = _DIGITS[raw >> 4], _DIGITS[raw & 15]
    bad = chance.random(n) < BAD
    marked = np.arange(n) < (CANARIES * n if canaries else 0)
    metadata = {VERSION_KEY: str(FORMAT_VERSION), NORMS_KEY: b"{}"}
    schema = log_schema(pa.string()).with_metadata(metadata)
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    step = part = 0
    for epoch in range(VISITS):
        own = np.concatenate([np.arange(n), np.flatnonzero(marked)])
        of_canary = np.arange(len(own)) >= n
        order = chance.permutation(len(own))
        for start in range(0, len(own), ROWS_PER_PART):
            rows = order[start : start + ROWS_PER_PART]
            sample, canary, m = own[rows], of_canary[rows], len(rows)
            scores = chance.normal(np.where(bad[sample] | canary, -1.0, 1.0), 0.8)
            batch = np.arange(m) // BATCH
            sizes, share = np.bincount(batch), np.exp(scores)
            columns = [
                _text(ids[sample]),
                np.full(m, epoch, np.int32),
                step + batch,
                pa.array(["mimic"]).take(pa.array(np.zeros(m, np.int64))),
                scores.astype(np.float32),
                (share / np.bincount(batch, share)[batch]).astype(np.float32),
                (-scores).astype(np.float32),
                sizes[batch].astype(np.int32),
                pa.array(["uniform/1000", None]).take(pa.array(1 - canary.astype(np.int64))),
                np.zeros(m, np.int32),
            ]
            path = temporary / f"part-00000-{part:06d}.parquet"
            pq.write_table(
                pa.table(columns, schema=schema),
                path,
                use_dictionary=_REPETITIVE,
                write_page_checksum=True,
            )
            step, part = step + len(sizes), part + 1
    temporary.rename(folder)


def _text(digits: np.ndarray[Any, np.dtype[np.uint8]]) -> pa.Array:
    """Return rows of 32 characters ``[m, 32]`` as strings."""
    m = len(digits)
    offsets = np.arange(0, 32 * m + 1, 32, dtype=np.int32)
    data = np.ascontiguousarray(digits)
    return pa.StringArray.from_buffers(m, pa.py_buffer(offsets), pa.py_buffer(data))


if __name__ == "__main__":
    main()
