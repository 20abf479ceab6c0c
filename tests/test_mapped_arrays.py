"""Arrays of a run are mapped from files: what was written stays, and memory stays free."""

import time
from pathlib import Path

import numpy as np
import pytest

from scmmgpt import mapped_arrays
from scmmgpt.mapped_arrays import new_array, open_array, read_in_passing, scattered_rows, set_scattered_rows

MAPPED = Path("/proc/self/statm")


def mapped_mb() -> float:
    return int(MAPPED.read_text().split()[2]) * 4096 / 1e6


@pytest.mark.skipif(not MAPPED.exists(), reason="only Linux tells how much of a file is in memory")
def test_what_is_read_in_passing_does_not_stay_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped_arrays, "_MOST_MAPPED", 0)
    array = read_in_passing(new_array(tmp_path / "values.npy", (60_000, 256), np.float32))
    before = mapped_mb()

    for start in range(0, len(array), 10_000):
        array[start : start + 10_000] = start
        time.sleep(0.1)

    assert mapped_mb() < before + 40  # of 61
    assert array[::10_000, 7].tolist() == [0, 10_000, 20_000, 30_000, 40_000, 50_000]
    array.flush()
    assert open_array(tmp_path / "values.npy")[59_999, 255] == 50_000


@pytest.mark.parametrize("part", [slice(None), slice(3, None), slice(None, None, 2)], ids=str)
def test_scattered_rows_are_those_of_the_array(tmp_path, part):
    array = new_array(tmp_path / "values.npy", (5_000, 300), np.float32)
    array[:] = np.arange(array.size, dtype=np.float32).reshape(array.shape)
    rows = np.array([0, 7, 8, 1_200, 2_400])

    np.testing.assert_array_equal(scattered_rows(array[part], rows), np.asarray(array)[part][rows])
    np.testing.assert_array_equal(scattered_rows(np.asarray(array)[part], rows), np.asarray(array)[part][rows])


@pytest.mark.parametrize("part", [slice(None), slice(3, None), slice(None, None, 2)], ids=str)
def test_scattered_rows_are_written_where_they_belong(tmp_path, part):
    array = new_array(tmp_path / "values.npy", (5_000, 300), np.float32)
    rows = np.array([2_400, 0, 7, 8, 1_200])
    values = np.arange(5 * 300, dtype=np.float32).reshape(5, 300)
    expected = np.zeros(array.shape, np.float32)
    expected[part][rows] = values

    set_scattered_rows(array[part], rows, values)

    array.flush()
    np.testing.assert_array_equal(open_array(tmp_path / "values.npy"), expected)


def test_an_array_that_was_cut_short_is_refused(tmp_path):
    path = tmp_path / "values.npy"
    new_array(path, (1000, 4), np.float32)
    path.write_bytes(path.read_bytes()[:-1])

    with pytest.raises(ValueError, match="values.npy is cut short"):
        open_array(path)
