"""The one border for text that others wrote: printable, bounded, and the next step is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver import text
from archiver.errors import MissingFiles

ANY = st.text(max_size=3000) | st.text(max_size=30).map(lambda part: part * 100)


@given(ANY, st.integers(20, 400))
def test_what_is_cut_has_at_most_so_many_characters_and_short_texts_stay(whole: str, limit: int) -> None:
    short = text.cut(whole, limit)
    assert len(short) <= limit
    assert short == whole or len(whole) > limit


@pytest.mark.parametrize("limit", [60, 100, 400, 999])
def test_the_beginning_and_the_whole_next_step_stay(limit: int) -> None:
    message = "3 files differ: " + "x" * 2000 + "; expected y, found z; next: re-ingest them"
    short = text.cut(message, limit)
    assert len(short) <= limit
    assert short.startswith("3 files")
    assert short.endswith("; next: re-ingest them")


def test_a_next_step_that_is_too_long_itself_keeps_its_beginning() -> None:
    short = text.cut("what; next: " + "do this, " * 200, 100)
    assert len(short) <= 100
    assert short.startswith("what")
    assert "; next: do this" in short


@given(ANY)
def test_what_is_shown_steers_nothing_and_is_one_line(whole: str) -> None:
    for shown in (
        text.printable(whole),
        text.name(whole),
        text.keyword(whole),
        text.summary(whole),
        text.one_line(whole, 99),
    ):
        assert shown.isprintable()
    assert text.joined([whole, whole]).count("\n") == 1


@given(ANY)
def test_what_temporal_is_given_fits_its_limits(whole: str) -> None:
    assert len(text.keyword(whole)) <= 250
    assert "\\" not in text.keyword(whole), "a server on SQL would not find it again"
    assert len(text.summary(whole).encode("utf-8", "replace")) <= 200


def test_a_cell_of_markdown_holds_no_link_no_html_and_no_other_cell() -> None:
    cell = text.table_cell("a | b [x](javascript:y) <img src=x> `c`\nd", 600)
    assert not set("|<[`\n") & set(cell)
    assert "&#124;" in cell


@given(st.text(max_size=4000), st.text(max_size=2000))
def test_an_error_is_one_printable_line_that_ends_with_what_to_do(found: str, name: str) -> None:
    error = MissingFiles(f"{name} is not there", expected="it", found=found, next_step="put it there")
    line = error.one_line()
    assert line.isprintable()
    assert len(line) <= error.MAX_MESSAGE
    assert line.endswith("; next: put it there")
    assert len(error.lines().split("\n")) <= 4
