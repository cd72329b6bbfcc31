"""The ``archiver`` command."""
