"""docs/scicat.md says what the product does: its settings, rights and statuses are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from activities import catalogue
from archiver.catalogue import payloads, session
from archiver.settings import Settings
from cli.programs import ROOT

TEXT = (ROOT / "docs" / "scicat.md").read_text()


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:scicat|archive|datablock|retrieval)\.[a-z_]+)", TEXT))))
def test_a_setting_that_the_page_names_exists(name: str) -> None:
    fields: Any = Settings.model_fields
    for part in name.split("."):
        assert part in fields
        fields = getattr(fields[part].annotation, "model_fields", {})


def test_each_right_that_a_message_names_is_on_the_page() -> None:
    named = {right for _, rights in session.RIGHTS for right in re.findall(r"[A-Z_]{6,}", rights)}
    assert {right for right in named if right not in TEXT} == set()


@pytest.mark.parametrize(
    "status",
    [
        payloads.STARTED,
        payloads.ARCHIVED,
        payloads.FAILED,
        payloads.CONTENT,
        payloads.RETRIEVED,
        payloads.NOT_RETRIEVED,
        payloads.IN_PROGRESS,
        catalogue.FINISHED_WELL,
    ],
)
def test_each_status_that_is_written_is_on_the_page(status: str) -> None:
    assert f"`{status}`" in TEXT


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:deploy|docs)/[\w./]+)`", TEXT))))
def test_each_file_that_the_page_names_is_there(path: str) -> None:
    assert Path(ROOT, path).is_file()
