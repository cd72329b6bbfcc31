"""A system for each test module, as the pipeline's tests have it, and beside each version of SciCat.

A test that is about time, Temporal or many jobs is marked ``one_version``: one of them is enough.
"""

from __future__ import annotations

import pytest

from archiver.catalogue.standin.state import VERSIONS
from tests.pipeline.conftest import MakeSystem, make_system, served, system

__all__ = ["MakeSystem", "make_system", "served", "system"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scicat_version" in metafunc.fixturenames and not metafunc.definition.get_closest_marker("one_version"):
        metafunc.parametrize("scicat_version", VERSIONS, scope="module")
