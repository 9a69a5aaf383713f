import random
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from gradmimic.log import ScoreLog

# Appends ids 0, 1, 2, … in batches of 4 until it is killed; says once when it has begun.
CHILD = """
import sys
from gradmimic.log import ScoreLog
first = int(sys.argv[2])
log = ScoreLog(sys.argv[1], rows_per_part=40)
print("begun", flush=True)
for step in range(first // 4, 10**9):
    ids = list(range(4 * step, 4 * step + 4))
    log.append(ids, ids, [0.25] * 4, [1.0] * 4, epoch=0, step=step, direction_norm=step + 1)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_killed_at_random_moments_no_written_row_is_lost(tmp_path):
    chance = random.Random(0)  # noqa: S311
    rows = 0
    for _ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(rows)], stdout=subprocess.PIPE
        )
        assert child.stdout.readline() == b"begun\n"
        time.sleep(chance.uniform(0.0, 0.2))
        child.kill()
        child.communicate()

        parts = sorted(tmp_path.glob("part-*.parquet"))
        assert all(pq.read_metadata(part).num_rows == 40 for part in parts)
        log = ScoreLog.read(tmp_path)
        ids = log.scan()["sample_id"].to_pylist()
        assert ids == list(range(40 * len(parts)))  # a prefix of what was appended, in order
        assert log.run["direction_norm"] == {step: step + 1 for step in range(len(ids) // 4)}
        assert len(ids) >= rows
        rows = len(ids)
    assert rows > 0
    with ScoreLog(tmp_path) as log:
        log.append([rows], [0.0], [1.0], [1.0], epoch=0, step=rows)
    assert log.scan()["sample_id"].to_pylist() == list(range(rows + 1))
    assert not list(tmp_path.glob(".*"))
