import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("default")
torch.set_num_threads(1)  # tests run beside each other

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the slow tests too, as CI does")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow") or os.environ.get("CI"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data():
    """Real data for development, which is never part of the repository."""
    folder = Path(os.environ.get("GRADMIMIC_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no development data at {folder}; set GRADMIMIC_DATA")
    return folder


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory):
    """What the cases of the distributed tests return on two ranks, started once for them all."""
    import on_ranks
    import test_contrastive_ranks
    import test_distributed
    import test_launchers

    names = [
        *(f"test_distributed.{case}" for case in test_distributed.CASES),
        *(f"test_launchers.{case}" for case in test_launchers.CASES),
        *(f"test_contrastive_ranks.{case}" for case in test_contrastive_ranks.CASES),
    ]
    base = tmp_path_factory.getbasetemp()
    return on_ranks.run_once(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base, names)
