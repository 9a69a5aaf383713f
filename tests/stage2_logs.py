"""Synthetic logs for the tests of stage 2."""

import numpy as np
import pyarrow as pa

ODD = [
    "it's",
    'a "quoted" one',
    "semi; colon",
    "-- comment",
    "ünïcode 🐦",
    "back\\slash",
    "%s {0}",
    "",
]


def names(kind, n):
    """Ids of n samples, ascending."""
    if kind == "int":
        return np.arange(n) - n // 2
    if kind == "hex":
        chance = np.random.default_rng(1)
        return np.array(sorted(chance.bytes(16).hex() for _ in range(n)))
    return np.array(sorted([*ODD, *(f"{i:08x}" * 4 for i in range(n))][:n]))


def logged(n=300, epochs=5, ids="odd", scorers=("mimic",), canaries=False, seed=0):
    """A log in which a fifth of the samples is bad and a tenth of the visits is missing."""
    chance = np.random.default_rng(seed)
    known = names(ids, n)
    bad = chance.random(n) < 0.2
    tables = []
    for number, scorer in enumerate(scorers):
        for epoch in range(epochs):
            seen = np.flatnonzero(chance.random(n) < 0.9)
            kinds = [None] * len(seen)
            low = bad[seen]
            if canaries:
                marked = np.arange(n // 5)
                seen, low = np.r_[seen, marked], np.r_[low, np.ones(len(marked), bool)]
                kinds += ["swapped"] * len(marked)
            order = chance.permutation(len(seen))
            scores = np.float32(chance.normal(np.where(low, -1.0, 1.0), 0.6 + 0.2 * number))[order]
            share = np.exp(scores)
            tables.append(
                pa.table(
                    {
                        "sample_id": known[seen[order]],
                        "epoch": np.full(len(seen), epoch, np.int32),
                        "step": np.full(len(seen), epoch, np.int64),
                        "scorer": [scorer] * len(seen),
                        "score": scores,
                        "weight": np.float32(share / share.sum()),
                        "loss": -scores,
                        "batch_size": np.full(len(seen), len(seen), np.int32),
                        "canary": pa.array([kinds[i] for i in order], pa.string()),
                    }
                )
            )
    return pa.concat_tables(tables)
