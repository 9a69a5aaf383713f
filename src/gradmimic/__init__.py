"""gradmimic: does learning from this sample move my weights toward a better model's weights?

The whole idea stands in ``gradmimic.score``. Names are loaded on first use, so that importing the
package, and asking the command line for help, costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradmimic.canaries import Canaries as Canaries
    from gradmimic.check import check_reference as check_reference
    from gradmimic.curate import Quality as Quality
    from gradmimic.curate import Selection as Selection
    from gradmimic.curate import estimate_quality as estimate_quality
    from gradmimic.curate import select as select
    from gradmimic.label_issues import find_label_issues as find_label_issues
    from gradmimic.log import ScoreLog as ScoreLog
    from gradmimic.measure import mimic_scores as mimic_scores
    from gradmimic.outputs import Outputs as Outputs
    from gradmimic.reference import Reference as Reference
    from gradmimic.reference import load_reference as load_reference
    from gradmimic.reweight import GradMimic as GradMimic
    from gradmimic.verdict import ReferenceCheck as ReferenceCheck

_HOME = {
    "Canaries": "gradmimic.canaries",
    "GradMimic": "gradmimic.reweight",
    "Outputs": "gradmimic.outputs",
    "Quality": "gradmimic.curate",
    "Reference": "gradmimic.reference",
    "ReferenceCheck": "gradmimic.verdict",
    "ScoreLog": "gradmimic.log",
    "Selection": "gradmimic.curate",
    "check_reference": "gradmimic.check",
    "estimate_quality": "gradmimic.curate",
    "find_label_issues": "gradmimic.label_issues",
    "load_reference": "gradmimic.reference",
    "mimic_scores": "gradmimic.measure",
    "select": "gradmimic.curate",
}

__all__ = [
    "Canaries",
    "GradMimic",
    "Outputs",
    "Quality",
    "Reference",
    "ReferenceCheck",
    "ScoreLog",
    "Selection",
    "check_reference",
    "estimate_quality",
    "find_label_issues",
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
