"""Systems on real parts, as the pipeline's tests have them, and the ``archiver`` command beside them."""

from __future__ import annotations

from tests.operators.conftest import run
from tests.pipeline.conftest import make_system, served, system
from tests.workflows.conftest import Serve, serve

__all__ = ["Serve", "make_system", "run", "serve", "served", "system"]
