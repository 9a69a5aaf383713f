"""gradmimic: does learning from this sample move my weights toward a better model's weights?

The whole idea stands in ``gradmimic.score``. Names are loaded on first use, so that importing the
package, and asking the command line for help, costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradmimic.curate import Selection as Selection
    from gradmimic.curate import select as select
    from gradmimic.log import ScoreLog as ScoreLog
    from gradmimic.measure import mimic_scores as mimic_scores
    from gradmimic.reference import Reference as Reference
    from gradmimic.reference import load_reference as load_reference
    from gradmimic.reweight import GradMimic as GradMimic

_HOME = {
    "GradMimic": "gradmimic.reweight",
    "Reference": "gradmimic.reference",
    "ScoreLog": "gradmimic.log",
    "Selection": "gradmimic.curate",
    "load_reference": "gradmimic.reference",
    "mimic_scores": "gradmimic.measure",
    "select": "gradmimic.curate",
}

__all__ = [
    "GradMimic",
    "Reference",
    "ScoreLog",
    "Selection",
    "load_reference",
    "mimic_scores",
    "select",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'gradmimic' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
