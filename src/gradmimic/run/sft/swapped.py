"""Canaries of instructions: a sample's prompt with another one's response.

    real      prompt_i  response_i          canary      prompt_i  response_j,  j ≠ i

Of a conversation every response is exchanged, in turn for those of the other one. The exchange is
one of tokens, so that nothing is tokenised twice; no canary has the response of its own sample.
"""

from math import ceil

import numpy as np
import numpy.typing as npt

from gradmimic.run.sft.encode import Tokens
from gradmimic.run.sft.samples import Collected, Sequences


def swapped(samples: Sequences, rate: float, seed: int, max_length: int) -> Sequences:
    """Make canaries of some samples.

    Args:
        samples: n of them.
        rate: ρ in (0, 1]; ⌈ρ n⌉ samples serve.
        seed: decides which, and whose responses they get.
        max_length: where what gets too long is cut.

    Returns:
        The canaries, with the ids of the samples that have their prompts. There are fewer where
        no other response is left.
    """
    n = len(samples)
    order = np.random.default_rng(seed).permutation(n)
    made = Collected()
    for turn in range(ceil(rate * n)):
        own, counted = samples.of(order[turn])
        for step in range(1, min(n, 100)):
            other, said = samples.of(order[turn - step])
            if not np.array_equal(own[counted], other[said]):
                made.add(
                    samples.ids[order[turn]], _exchanged(own, counted, other, said, max_length)
                )
                break
    return made.done()


def _exchanged(
    own: npt.NDArray[np.int32],
    counted: npt.NDArray[np.bool_],
    other: npt.NDArray[np.int32],
    said: npt.NDArray[np.bool_],
    max_length: int,
) -> Tokens:
    """Return one sequence with the responses of another."""
    theirs = [other[start:stop] for start, stop in _runs(said)]
    ids: list[int] = []
    marks: list[bool] = []
    at = 0
    for turn, (start, stop) in enumerate(_runs(counted)):
        response = theirs[turn % len(theirs)].tolist()
        ids += own[at:start].tolist() + response
        marks += [False] * (start - at) + [True] * len(response)
        at = stop
    ids += own[at:].tolist()
    marks += [False] * (len(own) - at)
    return Tokens(ids[:max_length], marks[:max_length], len(ids) > max_length)


def _runs(counted: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return where each run of counted tokens begins and ends."""
    edges = np.flatnonzero(np.diff(counted.astype(np.int8), prepend=0, append=0))
    return [(int(start), int(stop)) for start, stop in edges.reshape(-1, 2)]
