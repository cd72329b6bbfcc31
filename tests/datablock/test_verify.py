"""A verifier that verifies: every damage is found, nothing good is called bad."""

from __future__ import annotations

import random
import signal
import tempfile
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from archiver import errors
from archiver.datablock import verifier as verifier_module
from archiver.datablock import verify as verify_module
from archiver.datablock.manifest import ManifestReader
from archiver.datablock.verifier import VerifierProcess
from archiver.datablock.verify import verify
from archiver.direct_io import PastCacheReader
from archiver.progress import Silent
from tests.counts import often
from tests.datablock.making import packed

RNG = random.Random(7)
FILES = {
    f"d/{k:02} é.dat": RNG.randbytes(RNG.randrange(0, 90_000)) + bytes(RNG.randrange(0, 90_000)) for k in range(12)
}
SEED = 20261124


def check(data: bytes, manifest: bytes) -> verify_module.VerifyResult:
    def read() -> Iterable[memoryview]:
        return (memoryview(data[i : i + 40_000]) for i in range(0, len(data), 40_000))

    return verify(read, manifest, progress=lambda _: None)


@pytest.fixture(scope="module", params=["tar.gz", "tar.zst", "tar"])
def block(request: pytest.FixtureRequest) -> tuple[bytes, bytes]:
    data, making = packed(FILES, format=request.param)
    return data, making.manifest


def test_a_good_datablock_verifies(block: tuple[bytes, bytes]) -> None:
    result = check(*block)
    assert (result.files, result.size_bytes, result.packed_bytes) == (12, sum(map(len, FILES.values())), len(block[0]))


def test_every_single_bit_flip_is_found(block: tuple[bytes, bytes]) -> None:
    data, manifest = block
    rng = random.Random(SEED)
    for _ in range(often(120)):
        at, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
        damaged = bytearray(data)
        damaged[at] ^= bit
        with pytest.raises(errors.IntegrityMismatch):
            check(bytes(damaged), manifest)


def members(data: bytes, manifest: bytes) -> list[bytes]:
    reader = ManifestReader([manifest])
    reader.read_footer()
    starts = [0]
    for size in reader.member_sizes:
        starts.append(starts[-1] + size)
    return [data[a:b] for a, b in pairwise(starts)]


def test_every_cut_drop_swap_and_double_of_members_is_found(block: tuple[bytes, bytes]) -> None:
    data, manifest = block
    parts = members(data, manifest)
    assert len(parts) > 4
    damaged = [b"".join(parts[:k]) for k in range(len(parts))]
    damaged += [b"".join(parts[:k] + parts[k + 1 :]) for k in range(len(parts))]
    damaged += [b"".join([*parts[:k], parts[k], *parts[k:]]) for k in range(len(parts))]
    damaged += [b"".join([*parts[:k], parts[k + 1], parts[k], *parts[k + 2 :]]) for k in range(len(parts) - 1)]
    damaged += [
        data[:-1],
        data[:100],
        b"",
        data + b"\0",
        data + parts[-1],
        bytes(len(data)),
        data[:-2000] + bytes(2000),
    ]
    # Two neighbours that are both zeros may change places.
    different = [bad for bad in damaged if bad != data]
    assert len(different) > 4 * len(parts)
    for bad in different:
        with pytest.raises(errors.IntegrityMismatch):
            check(bad, manifest)


def test_another_valid_datablock_is_found() -> None:
    data, _ = packed({**FILES, "more": b"x"})
    _, making = packed(FILES)
    with pytest.raises(errors.IntegrityMismatch):
        check(data, making.manifest)


def test_a_damaged_manifest_is_never_good(block: tuple[bytes, bytes]) -> None:
    data, manifest = block
    rng = random.Random(SEED)
    for _ in range(often(60)):
        damaged = bytearray(manifest)
        # Bytes 3 to 9 of a gzip header are flags, time and system: some of their bits say nothing of the content.
        damaged[rng.choice([rng.randrange(3), rng.randrange(10, len(manifest))])] ^= 1 << rng.randrange(8)
        with pytest.raises(errors.IntegrityMismatch):
            check(data, bytes(damaged))
    for cut in (manifest[:-1], manifest[: len(manifest) // 2], b"", manifest + b"x"):
        with pytest.raises(errors.IntegrityMismatch):
            check(data, cut)


def test_a_missing_end_of_archive_is_found_though_every_hash_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mutant packer: everything agrees with its manifest, only the tar has no end."""
    from archiver.datablock import tar

    monkeypatch.setattr(tar, "END_OF_ARCHIVE", b"")
    data, making = packed(FILES)
    with pytest.raises(errors.IntegrityMismatch, match="end-of-archive"):
        check(data, making.manifest)


def test_a_packer_that_flips_a_byte_after_hashing_the_source_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lying encoder or memory: the datablock's own hash is right, the content is not."""
    from archiver.datablock import members as members_module
    from archiver.datablock import pack as pack_module

    def lying(format: str, level: int) -> members_module.Compress:
        honest = members_module.compressor(format, level)

        def compress(data: memoryview) -> bytes:
            wrong = bytearray(data)
            wrong[len(wrong) // 2] ^= 1
            return honest(memoryview(wrong))

        return compress

    monkeypatch.setattr(pack_module, "compressor", lying)
    data, making = packed(FILES)
    with pytest.raises(errors.IntegrityMismatch):
        check(data, making.manifest)


def test_a_mismatch_is_looked_at_twice_and_both_findings_are_told() -> None:
    data, making = packed(FILES)
    damaged = data[:-10] + bytes(10)
    readings = iter([damaged, data])

    def read() -> Iterator[memoryview]:
        yield memoryview(next(readings))

    with pytest.raises(errors.IntegrityMismatch, match="the second reading matched"):
        verify(read, making.manifest, progress=lambda _: None)


def test_a_bomb_is_stopped_at_the_size_that_the_manifest_gives() -> None:
    import gzip

    data, making = packed(FILES)
    parts = members(data, making.manifest)
    bomb = gzip.compress(bytes(200 * 2**20), 9)
    with pytest.raises(errors.IntegrityMismatch, match="found"):
        check(bomb + b"".join(parts[1:]), making.manifest)


def test_a_read_error_is_no_mismatch() -> None:
    _, making = packed(FILES)

    def read() -> Iterator[memoryview]:
        raise OSError(5, "Input/output error")
        yield memoryview(b"")

    with pytest.raises(errors.LtsFault) as raised:
        verify(read, making.manifest, progress=lambda _: None)
    assert raised.value.retryable


# --- the process ------------------------------------------------------------------------------------------------------------


def test_the_verifier_process_reads_past_the_cache_and_says_how(tmp_path: Path) -> None:
    data, making = packed(FILES)
    path = tmp_path / "1.tar.gz"
    path.write_bytes(data)
    verifier = VerifierProcess()
    result = verifier.verify(path, making.manifest, direct_io="auto", progress=Silent())
    assert (result.level, result.how_read) == ("host", "O_DIRECT")
    result = verifier.verify(path, making.manifest, direct_io="never", progress=Silent())
    assert result.how_read == "fsync+DONTNEED"
    path.write_bytes(data[:-1])
    with pytest.raises(errors.IntegrityMismatch, match=r"1\.tar\.gz"):
        verifier.verify(path, making.manifest, direct_io="auto", progress=Silent())
    path.unlink()
    with pytest.raises(errors.LtsFault, match="No such file"):
        verifier.verify(path, making.manifest, direct_io="auto", progress=Silent())
    verifier.stop()


def test_p5_a_verifier_process_that_dies_is_a_fault_that_is_tried_again(tmp_path: Path) -> None:
    data, making = packed(FILES)
    path = tmp_path / "1.tar.gz"
    path.write_bytes(data)
    verifier = VerifierProcess()
    process = verifier._start()
    process.send_signal(signal.SIGSTOP)
    threading.Timer(0.3, process.kill).start()
    with pytest.raises(errors.OwnFault, match="signal 9") as raised:
        verifier.verify(path, making.manifest, direct_io="auto", progress=Silent())
    assert raised.value.retryable
    assert verifier.verify(path, making.manifest, direct_io="auto", progress=Silent()).files == 12
    verifier.stop()


def test_a_stop_kills_the_verifier_process(tmp_path: Path) -> None:
    class StopNow(Silent):
        def advance(self, size_bytes: int = 0, files: int = 0) -> None:
            raise errors.Stopped("now")

    data, making = packed(FILES)
    path = tmp_path / "1.tar.gz"
    path.write_bytes(data)
    verifier = VerifierProcess()
    with pytest.raises(errors.Stopped):
        verifier.verify(path, making.manifest, direct_io="auto", progress=StopNow())
    assert verifier._process is None


def test_a_stop_is_heard_while_the_verifier_process_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an LTS whose reads hang."""

    class StopNow(Silent):
        def advance(self, size_bytes: int = 0, files: int = 0) -> None:
            raise errors.Stopped("now")

    monkeypatch.setattr(verifier_module, "LOOK_SECONDS", 0.05)
    data, making = packed(FILES)
    path = tmp_path / "1.tar.gz"
    path.write_bytes(data)
    verifier = VerifierProcess()
    process = verifier._start()
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(errors.Stopped):
        verifier.verify(path, making.manifest, direct_io="auto", progress=StopNow())
    assert process.returncode == -signal.SIGKILL


def test_requests_from_several_threads_are_answered_one_after_another(tmp_path: Path) -> None:
    blocks = {}
    for k in range(4):
        data, making = packed({f"{k}": bytes([k]) * 300_000})
        (tmp_path / f"{k}").write_bytes(data)
        blocks[k] = making
    verifier = VerifierProcess()

    def ask(k: int) -> str:
        answer = verifier.verify(tmp_path / f"{k}", blocks[k].manifest, direct_io="auto", progress=Silent())
        return answer.sha256

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, blocks)) == [blocks[k].result.sha256 for k in blocks]
    verifier.stop()


def test_a_file_system_in_memory_proves_the_level_cache_only() -> None:
    """It accepts O_DIRECT and answers from the cache nevertheless."""
    data, making = packed(FILES)
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(data)
        file.flush()
        verifier = VerifierProcess()
        result = verifier.verify(Path(file.name), making.manifest, direct_io="auto", progress=Silent())
        verifier.stop()
    assert result.level == "cache"


def test_the_reader_gives_every_byte_whatever_the_size(tmp_path: Path) -> None:
    for size in (0, 1, 4095, 4096, 4 * 2**20, 4 * 2**20 + 1, 9 * 2**20 + 77):
        data = random.Random(size).randbytes(size)
        path = tmp_path / f"{size}"
        path.write_bytes(data)
        for direct in ("auto", "never"):
            assert b"".join(bytes(chunk) for chunk in PastCacheReader(path, direct)) == data
