"""No query of ours names what a list of SciCat does not know, in any version, and none is written anywhere else."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from archiver.catalogue import queries
from archiver.catalogue.standin.filters import ANYTHING_BELOW, KNOWN
from tests.catalogue.place import Place
from tests.catalogue.samples import SAMPLES

ROOT = Path(__file__).parents[2]
BUILDERS = {
    name
    for name, function in inspect.getmembers(queries, inspect.isfunction)
    if function.__module__ == queries.__name__ and inspect.signature(function).return_annotation == "Query"
}


def test_every_function_that_makes_a_query_is_tried() -> None:
    assert {name.partition(",")[0] for name in SAMPLES} == BUILDERS


@pytest.mark.parametrize("name", SAMPLES)
async def test_every_query_is_accepted_by_each_version(place: Place, name: str) -> None:
    query = SAMPLES[name]
    answer = await place.ask("GET", query.path, params=query.params)
    assert (answer.status_code, answer.json()) == (200, [])


@pytest.mark.parametrize("name", SAMPLES)
def test_every_property_field_and_sort_is_one_that_the_list_knows(name: str) -> None:
    query = SAMPLES[name]
    known = KNOWN[query.path.rpartition("/")[2]]
    sorts = [query.filter.get("sort", {}), query.filter.get("limits", {}).get("sort", {})]
    order = query.filter.get("limits", {}).get("order", "")
    named = [
        *query.filter.get("where", {}),
        *(key for sort in sorts for key in sort),
        *([order.split(":")[0]] if order else []),
    ]
    for path in named:
        first, *rest = path.split(".")
        assert first in known, path
        assert first in ANYTHING_BELOW or set(rest) <= known, path
    # SciCat does not look at what fields names, so a wrong one would be missing without a word.
    assert set(query.filter.get("fields", [])) <= known | {"_id"}


def test_no_filter_is_written_anywhere_else() -> None:
    """Whoever needs another list of SciCat's adds a function to ``queries``, and its properties to the stand-in."""
    elsewhere = [
        str(path.relative_to(ROOT))
        for folder in ("archiver", "activities", "bridge", "cli", "workflows")
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r'["\']filter["\']\s*:', path.read_text())
    ]
    assert elsewhere == ["archiver/catalogue/queries.py"]
