"""``perm`` as a file's mode: every way in which one is written comes back right, and what is not certain is none."""

from __future__ import annotations

import stat
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.catalogue.modes import PERMISSIONS, file_mode, perm_of

ALL = range(PERMISSIONS + 1)
REGULAR = stat.S_IFREG
OTHER_TYPES = (stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
CERTAIN = {
    "octal with type": lambda mode: f"{REGULAR | mode:o}",
    "decimal with type, as Python clients": lambda mode: str(REGULAR | mode),
    "a decimal number": lambda mode: REGULAR | mode,
    "0o": lambda mode: f"0o{mode:03o}",
    "0o with type": lambda mode: oct(REGULAR | mode),
    "leading zero": lambda mode: f"0{mode:03o}",
    "leading zero with type": lambda mode: f"0{REGULAR | mode:o}",
    "ls": lambda mode: stat.filemode(REGULAR | mode),
    "ls without type": lambda mode: stat.filemode(REGULAR | mode)[1:],
    "ours": perm_of,
}


@pytest.mark.parametrize("form", CERTAIN)
def test_every_mode_in_a_certain_form_is_read_as_it_is(form: str) -> None:
    wrong = {CERTAIN[form](mode): mode for mode in ALL if file_mode(CERTAIN[form](mode)) != mode}
    assert wrong == {}


@pytest.mark.parametrize("kind", OTHER_TYPES, ids=oct)
def test_a_mode_of_another_type_than_a_file_is_none(kind: int) -> None:
    for mode in ALL:
        for perm in (f"{kind | mode:o}", oct(kind | mode), stat.filemode(kind | mode)):
            assert file_mode(perm) is None, perm


def usual(mode: int) -> bool:
    owner, group, others = f"{mode:03o}"
    return int(owner) >= 4 and all(int(a) & int(b) == int(b) for a, b in ((owner, group), (group, others)))


def test_three_digits_are_octal_where_that_is_usual_or_no_file_has_the_decimal_one() -> None:
    for mode in range(0o100, 0o1000):
        digits = f"{mode:o}"
        if usual(mode) or int(digits) > 0o777:
            assert file_mode(digits) == mode, digits


def test_three_digits_are_decimal_where_only_that_is_usual_else_none() -> None:
    for number in range(100, 512):
        octal = int(str(number), 8) if set(str(number)) <= set("01234567") else None
        if octal is None or not usual(octal):
            assert file_mode(str(number)) == (number if usual(number) else None), number


def test_where_both_readings_are_usual_the_one_taken_gives_nobody_more_rights_than_the_other() -> None:
    both = [digits for digits in map(str, range(100, 512)) if set(digits) <= set("01234567") and usual(int(digits, 8))]
    for digits in [digits for digits in both if usual(int(digits))]:
        mode = file_mode(digits)
        assert mode is not None
        assert mode & int(digits) == mode, digits


@pytest.mark.parametrize(
    ("perm", "mode"),
    [
        *(("33204", 0o664), ("33152", 0o600), ("33206", 0o666), ("33060", 0o444), ("33188", 0o644), (33188, 0o644)),
        *(("420", 0o644), ("384", 0o600), ("644", 0o644), ("600", 0o600), ("755", 0o755), (644, 0o644), ("604", 0o604)),
        *(("4755", 0o4755), ("1777", 0o1777), ("-rw-r--r--.", 0o644), ("-rwsr-sr-t", 0o7755), ("rwSr-Sr-T", 0o7644)),
        *(
            ("", None),
            ("0", None),
            ("7", None),
            ("44", None),
            ("6 4", None),
            ("-644", None),
            ("0o", None),
            ("+644", None),
        ),
        *(("12345678", None), ("٦٤٤", None), (None, None), (True, None), ([], None), (6.44, None), (-33188, None)),
        *(("689", None), ("16877", None), ("40755", None), ("drwxr-xr-x", None), ("lrwxrwxrwx", None), ("65535", None)),
        *(("200644", None), ("0b110", None), ("u=rw", None), ("rw-r--r--x", None), ("644\n", None), (" 644", None)),
    ],
)
def test_a_perm_and_its_mode(perm: Any, mode: int | None) -> None:
    assert file_mode(perm) == mode


@given(
    st.one_of(st.text(), st.text("0123456789ox-rwst"), st.integers(), st.floats(), st.none(), st.lists(st.integers()))
)
def test_whatever_comes_is_a_mode_or_none(perm: Any) -> None:
    mode = file_mode(perm)
    assert mode is None or 0 <= mode <= PERMISSIONS
