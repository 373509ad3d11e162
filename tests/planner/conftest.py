"""One cache folder for all tests of the planner, so that the base is measured once."""

import os
import sys
from collections.abc import Iterator

import pytest

sys.path.insert(0, os.path.dirname(__file__))


@pytest.fixture(scope="session", autouse=True)
def planner_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Point $REVEDGE_CACHE to a fresh folder."""
    before = os.environ.get("REVEDGE_CACHE")
    folder = str(tmp_path_factory.mktemp("cache"))
    os.environ["REVEDGE_CACHE"] = folder
    yield folder
    if before is None:
        del os.environ["REVEDGE_CACHE"]
    else:
        os.environ["REVEDGE_CACHE"] = before
