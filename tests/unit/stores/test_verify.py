"""Every fault is found and named by file and rows, and repair drops only what is bad."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedcache_stores import FeatureStore, FeatureWriter, IncompleteStoreError, NotAStoreError, StoreError
from embedcache_stores.repair import reopen
from embedcache_stores.verify import verify_store

Build = Callable[..., Any]
Contents = Callable[[Path], dict[str, bytes]]
LAYOUTS: list[dict[str, Any]] = [{}, {"compression": "lz4"}, {"compression": "zstd"}, {"rows_per_chunk": 2}]


def with_layout(made: Any, layout: dict[str, Any]) -> Any:
    import dataclasses

    return dataclasses.replace(made, spec=dataclasses.replace(made.spec, **layout))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["plain", "lz4", "zstd", "sharded"])
def test_a_sound_store_has_no_fault_and_its_values_are_counted(
    small: Build, tmp_path: Path, layout: dict[str, Any]
) -> None:
    made = with_layout(small(), layout)
    seen: list[tuple[int, int]] = []
    found = verify_store(made.write(tmp_path / "b.zarr"), lambda done, rows: seen.append((done, rows)))
    assert found.faults == []
    assert (found.rows, found.files) == (10, 9)
    assert seen == [(4, 10), (8, 10), (10, 10)]
    level = found.values["level_0"]
    assert (level.count, level.nan, level.infinite, level.saturated) == (240, 0, 0, 0)
    assert level.max_abs == float(np.abs(made.arrays["level_0"].astype(np.float32)).max())


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_in_any_file_of_any_array_is_found_and_mended(
    small: Build, contents: Contents, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("flip")
    made = with_layout(small(), data.draw(st.sampled_from(LAYOUTS)))
    path = made.write(folder / "b.zarr")
    whole = contents(path)
    key = data.draw(st.sampled_from(sorted(k for k in whole if "/" in k and not k.endswith("zarr.json"))))
    raw = bytearray((path / key).read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    (path / key).write_bytes(raw)
    found = verify_store(path)
    assert found.faults, f"byte {at} of {key}"
    array = key.partition("/")[0]
    assert all(f.array == array for f in found.faults)
    if array in made.arrays:
        group = int(key.rpartition("/")[2].split(".")[1])
        assert found.bad_groups == [group]
        rows = made.spec.group_rows(group)
        assert found.faults[0].file == key
        assert found.faults[0].rows == (rows.start, rows.stop - 1)
    else:
        assert found.bad_groups == []
    mend(path, made, found.bad_groups)
    assert contents(path) == whole


def mend(path: Path, made: Any, bad: list[int]) -> None:
    """Repair, and refill as extraction does."""
    reopen(path, drop=bad)
    with pytest.raises(IncompleteStoreError):
        FeatureStore(path)
    with FeatureWriter(path, made.spec) as writer:
        assert writer.missing == bad
        for group in bad:
            writer.write_group(group, *made.group(group))
        writer.commit()
    assert verify_store(path).faults == []


def break_(path: Path, how: str) -> None:
    """Damage a store in a way that is not a flipped bit."""
    chunk, other = path / "level_0" / "c.1.0.0.0", path / "level_0" / "c.0.0.0.0"
    if how == "lost":
        chunk.unlink()
    elif how == "cut short":
        chunk.write_bytes(chunk.read_bytes()[:-7])
    elif how == "empty":
        chunk.write_bytes(b"")
    elif how == "swapped":
        one, two = chunk.read_bytes(), other.read_bytes()
        chunk.write_bytes(two)
        other.write_bytes(one)
    elif how == "metadata lost":
        (path / "level_0" / "zarr.json").unlink()
    elif how == "metadata changed":
        text = (path / "level_0" / "zarr.json").read_text()
        (path / "level_0" / "zarr.json").write_text(text.replace("float16", "float32"))
    elif how == "column lost":
        (path / "split" / "c.0").unlink()
    elif how == "groups lost":
        (path / "groups.jsonl").unlink()
    elif how == "groups torn":
        (path / "groups.jsonl").write_bytes((path / "groups.jsonl").read_bytes()[:-30])
    elif how == "commit torn":
        (path / "zarr.json").write_bytes((path / "zarr.json").read_bytes()[:300])


@pytest.mark.parametrize(
    ("how", "bad", "sentence"),
    [
        ("lost", [1], r"level_0/c\.1\.0\.0\.0 \(rows 4..7 of level_0\): is lost"),
        ("cut short", [1], r"has 189 bytes instead of 196"),
        ("empty", [1], r"has 0 bytes instead of 196"),
        ("swapped", [0, 1], r"whole, but not the file that was written"),
        ("metadata lost", [], r"level_0/zarr\.json: the array's metadata is lost"),
        ("metadata changed", [], r"level_0/zarr\.json: it is not what zarr\.json says"),
        ("column lost", [], r"split: a chunk of the column is lost"),
        ("groups lost", [], r"groups\.jsonl: .*is lost or unreadable"),
        ("groups torn", [], r"groups\.jsonl: .*unreadable"),
        ("commit torn", [], r"zarr\.json: .*not readable as JSON"),
    ],
)
def test_every_kind_of_damage_is_named_and_mended(
    small: Build, contents: Contents, tmp_path: Path, how: str, bad: list[int], sentence: str
) -> None:
    import re

    made = small()
    path = made.write(tmp_path / "b.zarr")
    whole = contents(path)
    break_(path, how)
    found = verify_store(path)
    assert found.bad_groups == bad
    assert any(re.search(sentence, str(f)) for f in found.faults), [str(f) for f in found.faults]
    mend(path, made, found.bad_groups)
    assert contents(path) == whole


def test_too_much_damage_is_said_and_nothing_is_touched(small: Build, tmp_path: Path) -> None:
    path = small().write(tmp_path / "b.zarr")
    (path / "groups.jsonl").unlink()
    (path / "label" / "c.0.0").write_bytes(b"lost")
    with pytest.raises(StoreError, match=r"cannot be repaired, too much.*--rebuild"):
        reopen(path)
    assert (path / "zarr.json").exists()
    (path / "zarr.json").write_text("{")
    with pytest.raises(NotAStoreError, match="not readable as JSON"):
        verify_store(path)


def test_nan_infinite_and_saturated_values_are_counted_and_skipped_rows_are_not(small: Build, tmp_path: Path) -> None:
    made = small()
    made.columns["split"][2] = "skipped"
    made.arrays["level_0"][2] = np.nan
    made.arrays["level_0"][1, 0, 0, 0] = np.float16(65504)
    assert verify_store(made.write(tmp_path / "a.zarr")).faults == []
    assert verify_store(tmp_path / "a.zarr").values["level_0"].saturated == 1
    made.arrays["level_0"][5, 1] = np.nan
    made.arrays["level_0"][6, 0, 0, 0] = -np.inf
    found = verify_store(made.write(tmp_path / "b.zarr"))
    assert [str(f) for f in found.faults] == [
        "level_0/c.1.0.0.0 (rows 4..7 of level_0): 8 NaN and 1 infinite values, in rows 5, 6"
    ]
    values = found.values["level_0"]
    assert (values.nan, values.infinite, values.saturated) == (8, 1, 1)


@pytest.mark.parametrize("what", ["provenance", "content", "ids", "maximum"])
def test_a_store_that_says_other_than_it_holds_is_found(small: Build, tmp_path: Path, what: str) -> None:
    path = small().write(tmp_path / "b.zarr")
    root = json.loads((path / "zarr.json").read_text())
    recorded = root["attributes"]["embedcache"]
    if what == "provenance":
        recorded["provenance"]["backbone"]["name"] = "a better one"
    elif what == "ids":
        recorded["ids_digest"] = "0" * 64
    elif what == "maximum":
        recorded["max_abs"]["level_0"] = 1.0
    else:
        recorded["fingerprint"] = recorded["recipe"] = "0" * 64
    (path / "zarr.json").write_text(json.dumps(root))
    assert [f.file for f in verify_store(path).faults] == [{"ids": "sample_id"}.get(what, "zarr.json")]
