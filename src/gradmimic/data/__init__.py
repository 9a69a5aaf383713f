"""Reading samples from the files people keep them in, naming them, and corrupting labels."""

from gradmimic.data.noise import pair_flip, symmetric
from gradmimic.data.read import read_samples
from gradmimic.data.table import Samples, Shown, Skipped
from gradmimic.data.with_ids import WithIds

__all__ = ["Samples", "Shown", "Skipped", "WithIds", "pair_flip", "read_samples", "symmetric"]
