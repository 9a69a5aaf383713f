"""What a report of many samples costs: to write, to open, and to use.

    open     seconds from navigation to the end of loading, when every sample can be searched
    painted  seconds to the first content on the screen;  charts: to the last chart drawn
    search, sort, page       milliseconds from a key to the next frame, over all samples

Pages are those of ``gradmimic run``, on made-up features with pictures of 320 × 240; Chromium opens
each several times, and the medians count. The goal is 50,000 samples open in under 3 s.

Run: python benchmarks/report.py [--samples 1000 10000 50000] [--opens 5]
"""

import argparse
import io
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import save
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from rich.console import Console
from rich.table import Table

from gradmimic.run.config import RunConfig
from gradmimic.run.job import run_job

CLASSES, FEATURES, PICTURES = 100, 32, 64  # so few pictures, taken in turns, stay small on disk
GOAL = 3.0
COLUMNS = ("open_s", "painted_s", "charts_s", "search_ms", "sort_ms", "page_ms")

TIMES = """() => {
    const [page] = performance.getEntriesByType('navigation');
    const paint = performance.getEntriesByName('first-contentful-paint')[0];
    return [page.loadEventEnd / 1000, paint.startTime / 1000];
}"""
DRAWN = "[...document.querySelectorAll('.plot')].every(plot => plot.dataset.drawn !== undefined)"
ACT = """async ([id, value]) => {
    const start = performance.now();
    const field = document.getElementById(id);
    if (value === null) field.querySelector('button:last-of-type').click();
    else { field.value = value; field.dispatchEvent(new Event('input')); }
    await new Promise(requestAnimationFrame);
    await new Promise(done => setTimeout(done));
    return performance.now() - start;
}"""


def write_data(folder: Path, n: int) -> None:
    """Write features around a centre for each class, with pictures, and as many rows to test on."""
    chance = np.random.default_rng(0)
    centres = chance.normal(size=(CLASSES, FEATURES))
    pictures = []
    for _ in range(PICTURES):
        small = chance.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(small).resize((320, 240), Image.Resampling.BICUBIC).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    for name, rows in (("train", n), ("test", 1000)):
        labels = chance.integers(0, CLASSES, rows)
        features = centres[labels] + 0.5 * chance.normal(size=(rows, FEATURES))
        table = {
            "features": pa.array(list(features.astype(np.float32))),
            "label": [f"class {label:03}" for label in labels],
            "picture": [pictures[row % PICTURES] for row in range(rows)],
        }
        pq.write_table(pa.table(table), folder / f"{name}.parquet")


def write_page(folder: Path, n: int) -> Path:
    """Run on made-up samples, a fifth of them with a wrong label; return the report."""
    write_data(folder, n)
    config = RunConfig(
        data=str(folder / "train.parquet"), labels="label", show="picture", kind="features",
        test=str(folder / "test.parquet"), test_labels="label", trusted=f"0:{n // 10}",
        noise="symmetric", noise_rate=0.2, epochs=2, batch_size=256, reference_epochs=5, lr=0.01,
        out=str(folder / "run"),
    )  # fmt: skip
    return run_job(config).files["report"]


def open_once(browser: Browser, page_file: Path) -> dict[str, float]:
    """Open a page in a window of its own, and use it."""
    context = browser.new_context(offline=True, viewport={"width": 1200, "height": 900})
    page = context.new_page()
    page.goto(page_file.resolve().as_uri())
    opened, painted = page.evaluate(TIMES)
    page.wait_for_function(DRAWN)
    drawn = page.evaluate("performance.now()") / 1000
    page.evaluate(ACT, ["g-end", ""])
    found = {
        "open_s": opened,
        "painted_s": painted,
        "charts_s": drawn,
        "search_ms": page.evaluate(ACT, ["g-search", "class 07"]),
        "page_ms": page.evaluate(ACT, ["g-pages", None]),
        "sort_ms": page.evaluate(ACT, ["g-sort", "borderline"]),
        "elements": page.evaluate("document.querySelectorAll('*').length"),
    }
    context.close()
    return found


def measure(n: int, opens: int, chromium: str) -> dict[str, Any]:
    """Return the medians of one size."""
    with tempfile.TemporaryDirectory() as folder:
        page_file = write_page(Path(folder), n)
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
            )
            seen = [open_once(browser, page_file) for _ in range(opens)]
            browser.close()
        medians = {name: statistics.median(one[name] for one in seen) for name in seen[0]}
        return {"samples": n, "megabytes": page_file.stat().st_size / 1e6, **medians}


def main() -> None:
    """Print the table and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, nargs="+", default=[1_000, 10_000, 50_000])
    parser.add_argument("--opens", type=int, default=5)
    arguments = parser.parse_args()
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
    if chromium is None:
        parser.error("there is no Chromium: install one, or set CHROMIUM to its path")
    rows = [measure(n, arguments.opens, chromium) for n in arguments.samples]
    table = Table("samples", "MB", *(name.replace("_", ", ") for name in COLUMNS), "elements")
    for row in rows:
        cells = [
            f"{row[name]:.2f}" if name.endswith("_s") else f"{row[name]:.0f}" for name in COLUMNS
        ]
        table.add_row(
            f"{row['samples']:,}", f"{row['megabytes']:.1f}", *cells, f"{row['elements']:.0f}"
        )
    Console().print(table)
    for row in rows:
        met = "met" if row["open_s"] < GOAL and row["charts_s"] < GOAL else "MISSED"
        print(f"{row['samples']:,} samples in under {GOAL:.0f} s, charts too: {met}")
    print(f"saved to {save('report', rows, 'python benchmarks/report.py')}")


if __name__ == "__main__":
    main()
