"""The picture of ``archiver watch``, docs/images/watch.svg: ``PICTURES=1 pytest tests/operators/test_watch.py -k picture``."""

from __future__ import annotations

import os

from rich.console import Console

from cli.programs import ROOT

IMAGE = ROOT / "docs" / "images" / "watch.svg"


def saved(console: Console) -> str:
    """The text of what was printed; with PICTURES set, also the picture for the docs."""
    text = console.export_text(clear=False)
    if os.environ.get("PICTURES"):
        console.save_svg(str(IMAGE), title="archiver watch", clear=False)
    return text
