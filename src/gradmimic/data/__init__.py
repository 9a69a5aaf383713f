"""Reading samples from the files people keep them in, and corrupting labels on purpose."""

from gradmimic.data.noise import pair_flip, symmetric
from gradmimic.data.read import read_samples
from gradmimic.data.table import Samples, Shown, Skipped

__all__ = ["Samples", "Shown", "Skipped", "pair_flip", "read_samples", "symmetric"]
