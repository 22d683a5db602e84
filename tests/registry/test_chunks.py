from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compiler.safetensors_file import TensorEntry, encode_header, read_header
from registry.chunks import PIECE_BYTES, RUN_BYTES, SMALL_BYTES, cut


def write(path: Path, sizes: list[int], fill: int) -> None:
    entries = [TensorEntry(f"t{n}", "U8", (size,), path, 0, size) for n, size in enumerate(sizes)]
    path.write_bytes(encode_header(entries) + bytes([fill]) * sum(sizes))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(sizes=st.lists(st.one_of(st.integers(0, 3 * SMALL_BYTES), st.just(SMALL_BYTES)), max_size=40))
def test_cuts_tile_the_file_and_depend_on_its_header_alone(sizes: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder, "one.safetensors"), Path(folder, "two.safetensors")
        write(one, sizes, 1)
        write(two, sizes, 2)
        runs = cut(one)
        assert runs == cut(two)
        assert [run.start for run in runs[1:]] == [run.stop for run in runs[:-1]]
        assert (runs[0].start, runs[-1].stop) == (0, one.stat().st_size)
        assert all(0 < len(run) <= PIECE_BYTES for run in runs)
        for entry in read_header(one)[0].values():
            if entry.stop - entry.start > SMALL_BYTES:
                assert range(entry.start, entry.stop) in runs  # so whatever changes beside it, it is shared


def test_small_tensors_share_a_blob_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    write(path, [1000] * 200, 0)
    header, *runs = cut(path)
    assert header.stop == read_header(path)[1]
    assert len(runs) == -(-200 // (RUN_BYTES // 1000))
    assert max(len(run) for run in runs) <= RUN_BYTES


def test_large_tensors_and_other_files_are_cut_into_pieces(tmp_path: Path) -> None:
    tensor, other, empty = tmp_path / "x.safetensors", tmp_path / "x.png", tmp_path / "empty"
    write(tensor, [PIECE_BYTES + 5], 0)
    with other.open("wb") as file:
        file.truncate(2 * PIECE_BYTES + 7)
    empty.touch()
    assert [len(run) for run in cut(tensor)[1:]] == [PIECE_BYTES, 5]
    assert [len(run) for run in cut(other)] == [PIECE_BYTES, PIECE_BYTES, 7]
    assert cut(empty) == ()
