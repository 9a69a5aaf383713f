"""Read a subset file back, and stream what it keeps of the shards without writing them again.

python examples/datacomp/subset.py runs/datacomp
"""

import argparse
import json
from pathlib import Path

import webdataset as wds

from gradmimic.curate import Selection
from gradmimic.curate.datacomp import read_datacomp
from gradmimic.integrations.webdataset import keep


def uid(pair):
    """Return a pair's id; where a shard breaks off there may be none."""
    return json.loads(pair.get("json", "{}")).get("uid", "")


def main():
    parser = argparse.ArgumentParser(description="Read a subset file back.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    uids = read_datacomp(folder / "subset.npy")
    swapped = set((folder / "swapped.txt").read_text().split())
    print(f"subset.npy: {len(uids)} pairs, {sum(uid in swapped for uid in uids)} of them swapped")

    selection = Selection.from_parquet(folder / "selection.parquet")
    shards = sorted(map(str, (folder / "shards").glob("*.tar")))
    pairs = wds.WebDataset(shards, shardshuffle=False, handler=wds.ignore_and_continue)
    kept = [uid(pair) for pair in pairs.select(keep(selection, uid))]
    same = "the same" if sorted(kept) == uids.tolist() else "other pairs"
    print(f"shards: {len(kept)} pairs pass the selection while they are read, {same}")


if __name__ == "__main__":
    main()
