"""Systems on real parts, as the pipeline's tests have them."""

from tests.pipeline.conftest import make_system, served, system

__all__ = ["make_system", "served", "system"]
