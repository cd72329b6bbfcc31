"""A stand-in for SciCat's backend: its behaviour at the HTTP edge and its traps, never kinder.

For ``archiver dev``, the demo and tests. ``create_app`` makes the ASGI application; ``python -m archiver.catalogue.standin``
serves it.
"""

from archiver.catalogue.standin.app import StandInSettings, create_app

__all__ = ["StandInSettings", "create_app"]
