"""A system for each test module, as the pipeline's tests have it."""

from __future__ import annotations

from tests.pipeline.conftest import MakeSystem, make_system, served, system

__all__ = ["MakeSystem", "make_system", "served", "system"]
