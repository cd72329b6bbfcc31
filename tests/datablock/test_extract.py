"""Files come out of a datablock as they went in, whichever of them and whatever their names and sizes."""

from __future__ import annotations

import errno
import gzip
import io
import random
import tarfile
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from archiver import errors
from archiver.datablock import extract as extracting
from archiver.datablock.extract import Extracted, extract, extract_files, pass_through, select
from archiver.datablock.manifest import ManifestReader
from tests.counts import often
from tests.datablock.extracting import MEMBER_BYTES, Sink, Source, hand_on, nothing, take, take_all
from tests.datablock.making import packed

RNG = random.Random(11)
FILES = {f"f{k:02}": RNG.randbytes(30_000 + k) for k in range(12)}
FORMATS = ["tar.gz", "tar.zst", "tar"]


@pytest.fixture(scope="module", params=FORMATS)
def block(request: pytest.FixtureRequest) -> tuple[bytes, bytes]:
    data, making = packed(FILES, format=request.param)
    return data, making.manifest


def test_every_file_comes_out_as_it_went_in(block: tuple[bytes, bytes]) -> None:
    sink, result = take_all(*block)
    assert sink.committed == FILES
    assert list(sink.committed) == sorted(FILES)
    assert result == Extracted(12, sum(map(len, FILES.values())), len(block[0]), 0)


def test_a_file_that_is_there_already_is_checked_and_not_handed_over_again(block: tuple[bytes, bytes]) -> None:
    sink, result = take_all(*block, Sink(unwanted=["f03", "f04"]))
    assert sink.committed == {path: data for path, data in FILES.items() if path not in ("f03", "f04")}
    assert (result.files, result.skipped, result.size_bytes) == (10, 2, sum(map(len, sink.committed.values())))
    sink, result, _ = take(*block, ["f03", "f09"], Sink(unwanted=["f03"]))
    assert (list(sink.committed), result.files, result.skipped) == (["f09"], 1, 1)


@pytest.mark.parametrize(
    "wanted", [["f00"], ["f05"], ["f11"], ["f00", "f02"], ["f00", "f11"], ["f01", "f02", "f07"], sorted(FILES), []]
)
def test_only_the_members_that_hold_wanted_files_are_read(block: tuple[bytes, bytes], wanted: list[str]) -> None:
    sink, result, source = take(*block, wanted)
    assert sink.committed == {path: FILES[path] for path in wanted}
    reader = ManifestReader([block[1]])
    files = list(reader.files())
    ends = [*(file.offset for file in files[1:]), reader.footer.tar_bytes - 1024]
    held = {
        member
        for file, end in zip(files, ends, strict=True)
        if file.path in wanted
        for member in range(file.offset // MEMBER_BYTES, (end - 1) // MEMBER_BYTES + 1)
    }
    assert source.read_bytes == result.read_bytes == sum(reader.member_sizes[member] for member in held)
    runs = len(held) - sum(later - earlier == 1 for earlier, later in pairwise(sorted(held)))
    assert len(source.ranges) == runs, "neighbouring members are read as one range"
    chosen = select(block[1], set(wanted))
    assert (chosen.files, chosen.found, chosen.read_bytes) == (len(wanted), set(wanted), result.read_bytes)
    assert chosen.size_bytes == result.size_bytes


@pytest.mark.parametrize("kept", [0, 2, 3])
def test_more_files_than_are_kept_in_memory_come_out_too(
    block: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(extracting, "KEPT", kept)
    wanted = ["f01", "f02", "f07"]
    sink, result, _ = take(*block, wanted)
    assert sink.committed == {path: FILES[path] for path in wanted}
    assert result.files == 3


def test_selecting_tells_what_is_there_and_what_would_be_read(block: tuple[bytes, bytes]) -> None:
    data, manifest = block
    some = select(manifest, {"f01", "f1", "no such file"})
    assert (some.found, some.files, some.size_bytes) == ({"f01"}, 1, 30_001)
    everything = select(manifest)
    assert (everything.files, everything.found, everything.read_bytes) == (12, frozenset(), len(data))
    assert (everything.header.pid, everything.header.datablock) == ("20.500.1/x", 1)
    assert everything.footer.packed_bytes == len(data)


def test_a_datablock_is_handed_on_byte_for_byte(block: tuple[bytes, bytes]) -> None:
    out, result = hand_on(*block)
    assert out == block[0]
    assert result == Extracted(12, sum(map(len, FILES.values())), len(out), 0)


def test_progress_is_told_every_byte_that_is_read(block: tuple[bytes, bytes]) -> None:
    data, manifest = block
    told: list[int] = []
    extract(Source(data).whole, manifest, Sink(), progress=told.append)
    assert sum(told) == len(data)
    told.clear()
    result = extract_files(Source(data).range, manifest, lambda path: path == "f05", Sink(), progress=told.append)
    assert sum(told) == result.read_bytes < len(data) / 2


BORDERS = {
    # Each file has one header block; the comment says where it ends in its member of 128 blocks.
    "a": bytes(MEMBER_BYTES - 512),  # exactly at the border
    "b": b"",
    "c": b"x" * (MEMBER_BYTES - 1024 - 1),  # one byte before it, padding behind
    "d": b"y" * (MEMBER_BYTES - 1024),  # one block before it: the next header is the last block
    "e": b"z" * 511,
    "f": b"z" * 512,
    "g": b"z" * 513,
    "h": b"w" * (3 * MEMBER_BYTES),  # over several members
    "i": b"",
    "j": b"v",
}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("chunk", [1000, 65_536, 10**9])
def test_empty_files_and_files_that_end_at_borders_come_out_alone_and_together(format: str, chunk: int) -> None:
    data, making = packed(BORDERS, format=format)
    sink = Sink()
    extract(Source(data, chunk).whole, making.manifest, sink, progress=nothing)
    assert sink.committed == BORDERS
    for path in BORDERS:
        sink, _, source = take(data, making.manifest, [path])
        assert sink.committed == {path: BORDERS[path]}
    _, _, source = take(data, making.manifest, ["a"])
    reader = ManifestReader([making.manifest])
    reader.read_footer()
    assert source.ranges == [(0, reader.member_sizes[0])], "the file ends where the member ends"


NAMES = [
    " ", "-rf", "a b", "a\nb", "tab\t", "q'uo\"te", "$(id)", "`id`", "back\\slash", "#1", "a#12", "*", "?", "%2e%2e", "~",
    "..a", "...", "a..", "e\u0301", "\u00e9", "\U0001f600", "\u202egnp.exe", "d/.hidden", "x" * 255, "y" * 101, "\u00fc" * 127,
    "d/" + "e" * 90 + "/" + "f" * 90, "/".join(["g" * 200] * 20), "con", "nul.txt", "\x01\x7f", "\u2028",
]  # fmt: skip


@pytest.mark.parametrize("format", FORMATS)
def test_files_of_any_name_come_out_under_it(format: str) -> None:
    files = {name: name.encode() * 7 for name in NAMES}
    data, making = packed(files, format=format)
    assert take_all(data, making.manifest)[0].committed == files
    for name in NAMES:
        assert take(data, making.manifest, [name])[0].committed == {name: files[name]}


def test_twenty_thousand_tiny_files_come_out_and_any_one_of_them_alone() -> None:
    files = {f"{k % 100}/{k:05}": b"%d" % k for k in range(20_000)}
    data, making = packed(files, max_files=20_000)
    sink, result = take_all(data, making.manifest)
    assert sink.committed == files
    assert result.files == 20_000
    sink, result, _ = take(data, making.manifest, ["50/12350"])
    assert sink.committed == {"50/12350": b"12350"}
    assert result.read_bytes < len(data) / 50
    every_seventh = sorted(files)[::7]
    assert list(take(data, making.manifest, every_seventh)[0].committed) == every_seventh


contents = st.builds(
    lambda seed, size, even: bytes(size) if even else random.Random(seed).randbytes(size),
    st.integers(0, 9),
    st.one_of(st.integers(0, 2000), st.sampled_from([65_023, 65_024, 65_025, 130_560, 131_072, 200_000])),
    st.booleans(),
)
segments = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1, max_size=60).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= 255
)
trees = st.dictionaries(
    st.lists(segments, min_size=1, max_size=3).map("/".join), contents, min_size=1, max_size=12
).filter(lambda files: not any(f"{path}/" == other[: len(path) + 1] for path in files for other in files))


@settings(max_examples=often(60), deadline=None)
@given(trees, st.sampled_from(FORMATS), st.integers(500, 200_000), st.randoms(use_true_random=False))
def test_what_comes_out_is_what_tarfile_sees(
    files: dict[str, bytes], format: str, chunk: int, rng: random.Random
) -> None:
    data, making = packed(files, format=format)
    plain = {
        "tar": bytes,
        "tar.gz": gzip.decompress,
        "tar.zst": lambda it: (
            zstandard.ZstdDecompressor().stream_reader(io.BytesIO(it), read_across_frames=True).read()
        ),
    }[format](data)
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        seen = {member.name: archive.extractfile(member).read() for member in archive}  # type: ignore[union-attr]
    sink = Sink()
    extract(Source(data, chunk).whole, making.manifest, sink, progress=nothing)
    assert sink.committed == seen == files
    wanted = {path for path in seen if rng.random() < 0.4}
    sink, source = Sink(), Source(data, chunk)
    extract_files(source.range, making.manifest, wanted.__contains__, sink, progress=nothing)
    assert sink.committed == {path: seen[path] for path in wanted}
    assert source.read_bytes == select(making.manifest, wanted).read_bytes


# --- stops and errors -------------------------------------------------------------------------------------------------------


def modes(source: Source, manifest: bytes, sink: Sink) -> dict[str, object]:
    return {
        "whole": lambda progress: extract(source.whole, manifest, sink, progress=progress),
        "files": lambda progress: extract_files(source.range, manifest, lambda _: True, sink, progress=progress),
        "handed on": lambda progress: pass_through(source.whole, manifest, lambda _: None, progress=progress),
    }


MODES = ["whole", "files", "handed on"]


def assert_ended(source: Source, sink: Sink) -> None:
    assert source.closed, "the reader is closed"
    assert not sink.left_open
    assert len(sink.threads) <= 1
    assert not [thread for thread in threading.enumerate() if thread.name in ("members", "decode")]
    assert all(sink.committed[path] == FILES[path] for path in sink.committed)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("after", [1, 5])
def test_a_stop_ends_everything_and_leaves_no_file_begun(block: tuple[bytes, bytes], mode: str, after: int) -> None:
    source, sink = Source(block[0]), Sink()
    chunks = 0

    def stop(size: int) -> None:
        nonlocal chunks
        chunks += 1
        if chunks == after:
            raise errors.Stopped("now")

    with pytest.raises(errors.Stopped):
        modes(source, block[1], sink)[mode](stop)  # type: ignore[operator]
    assert source.read_bytes == after * source.chunk
    assert_ended(source, sink)
    assert len(sink.committed) < 12


@pytest.mark.parametrize("call", ["begin", "data", "commit"])
@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize("error", [errors.Stopped("now"), OSError(errno.ENOSPC, "No space left on device")])
def test_an_error_of_the_sink_ends_everything_and_is_told_as_it_is(
    block: tuple[bytes, bytes], mode: str, call: str, error: Exception
) -> None:
    def fail(now: str, path: str) -> None:
        if (now, path) == (call, "f04"):
            raise error

    source, sink = Source(block[0]), Sink(fail=fail)
    with pytest.raises(type(error)) as raised:
        modes(source, block[1], sink)[mode](nothing)  # type: ignore[operator]
    assert raised.value is error, "an error of the target is not one of the LTS"
    assert_ended(source, sink)
    assert list(sink.committed) == ["f00", "f01", "f02", "f03"]
    assert sink.aborted == ([] if call == "begin" else ["f04"])


def test_an_abort_that_fails_does_not_hide_why_it_came_to_it(
    block: tuple[bytes, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn(Sink):
        def abort(self) -> None:
            super().abort()
            raise OSError(errno.EIO, "Input/output error")

    def fail(now: str, path: str) -> None:
        if (now, path) == ("data", "f04"):
            raise errors.Stopped("now")

    with pytest.raises(errors.Stopped):
        take_all(*block, Stubborn(fail=fail))
    assert "could not be taken back" in caplog.text


@pytest.mark.parametrize("mode", MODES)
def test_a_read_error_is_the_ltss_and_no_mismatch(block: tuple[bytes, bytes], mode: str) -> None:
    class Failing(Source):
        def _chunks(self, offset: int, size: int) -> Iterator[memoryview]:
            for chunk in super()._chunks(offset, size):
                if self.read_bytes > 100_000:
                    raise OSError(errno.EIO, "Input/output error")
                yield chunk

    source, sink = Failing(block[0]), Sink()
    with pytest.raises(errors.LtsFault, match="Input/output error") as raised:
        modes(source, block[1], sink)[mode](nothing)  # type: ignore[operator]
    assert raised.value.retryable
    assert_ended(source, sink)


def test_an_error_of_whom_a_datablock_is_handed_to_is_not_one_of_the_lts(block: tuple[bytes, bytes]) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")

    def write(chunk: memoryview) -> None:
        raise error

    source = Source(block[0])
    with pytest.raises(OSError, match="No space") as raised:
        pass_through(source.whole, block[1], write, progress=nothing)
    assert raised.value is error
    assert_ended(source, Sink())


def test_a_stop_does_not_wait_for_the_small_files_that_are_decoded_already() -> None:
    files = {f"{k:04}": b"x" for k in range(3000)}
    data, making = packed(files, member_bytes=2**22)
    working, closed = threading.Event(), threading.Event()

    def slow(call: str, path: str) -> None:
        if (call, path) == ("data", "0002"):
            working.set()
            assert closed.wait(60)

    def read() -> Iterator[memoryview]:
        try:
            # A trickle, so that the stop comes with everything decoded.
            yield memoryview(data)[:-1]
            yield memoryview(data)[-1:]
        finally:
            closed.set()

    def stop(size: int) -> None:
        assert working.wait(60)
        raise errors.Stopped("now")

    sink = Sink(fail=slow)
    with pytest.raises(errors.Stopped):
        extract(read, making.manifest, sink, progress=stop)
    assert list(sink.committed) == ["0000", "0001", "0002"]
