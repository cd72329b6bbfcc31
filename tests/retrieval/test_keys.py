"""Whose the objects of retrievals in staging are, and which of them nobody needs any more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from archiver.retrieval.keys import RetrievalKeys, dead, retrieved_pid, selection_of
from archiver.retrieval.wire import Destination
from archiver.storage.staging import StagingKeys, dataset_of

PIDS = st.sampled_from(["20.500.1/x", "a b/c?", "no-slash", "a/b/c", "retrievals/x"]) | st.text(
    min_size=1, max_size=20
).filter(lambda pid: not any(0xD800 <= ord(one) < 0xE000 for one in pid))
PREFIXES = st.sampled_from(["", "archiver/", "retrievals/"])


@given(PIDS, PREFIXES, st.lists(st.text(max_size=5), max_size=3))
def test_a_key_tells_its_dataset_and_is_no_key_of_an_archiving(pid: str, prefix: str, files: list[str]) -> None:
    keys = RetrievalKeys(prefix, pid, selection_of(Destination(), files))
    for key in (keys.staged("0" * 64), keys.staged("1" * 64)):
        assert retrieved_pid(prefix, key) == pid
        assert dataset_of(prefix, key) is None
    assert retrieved_pid(prefix, StagingKeys(prefix, pid, "run").named("plan", "0")) is None


@pytest.mark.parametrize(
    "key", ["", "retrievals/", "retrievals/a/b", "retrievals/a/b/", "retrievals/x", "retrievals/a/b/c/d/e", "x/a/b/c/d"]
)
def test_what_is_not_ours_by_name_is_nobodys(key: str) -> None:
    assert retrieved_pid("", key) is None


def test_of_a_selection_all_is_dead_or_nothing() -> None:
    old, young, unknown = ("r/a/b/1/x", 5.0), ("r/a/b/2/x", 15.0), ("r/a/b/3/x", 0.0)
    assert dead([old, young, unknown], 10.0) == ["r/a/b/1/x"]
    assert dead([old, ("r/a/b/1/y", 15.0)], 10.0) == []
    assert dead([("r/a/b/2/y", 5.0), young], 10.0) == []
