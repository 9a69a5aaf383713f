"""Pictures with captions: web shards, folders, tables, and what of them cannot be used."""

from gradmimic.data.pairs.batch import PairBatch
from gradmimic.data.pairs.census import Census, Row, ShardCensus
from gradmimic.data.pairs.duplicates import Duplicates, find_duplicates
from gradmimic.data.pairs.open import open_pairs
from gradmimic.data.pairs.reader import PairReader
from gradmimic.data.pairs.sample import Dropped, End, Pair, Record
from gradmimic.data.pairs.source import PairSource

__all__ = [
    "Census",
    "Dropped",
    "Duplicates",
    "End",
    "Pair",
    "PairBatch",
    "PairReader",
    "PairSource",
    "Record",
    "Row",
    "ShardCensus",
    "find_duplicates",
    "open_pairs",
]
