"""Identity and layout, without touching a disk."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache_stores import ArraySpec, LevelSpec, StoreSpec, fingerprint, ids_digest
from embedcache_stores.schema import canonical_json, differences, level_arrays, rows_per_group_for

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
provenances = st.dictionaries(st.text(max_size=4), json_values, min_size=1, max_size=5)
deep_provenances = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.recursive(
        st.integers() | st.text(max_size=3),
        lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, min_size=1, max_size=3),
        max_leaves=6,
    ),
    min_size=1,
    max_size=4,
)


def leaves(data: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of every value that is not itself a mapping."""
    for key, value in data.items():
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, key))
        else:
            yield (*prefix, key)


def with_leaf(data: dict[str, Any], path: tuple[str, ...], value: object) -> dict[str, Any]:
    """Return a copy in which one leaf is another value."""
    changed = copy.deepcopy(data)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def shuffled(data: Any, random: Any) -> Any:
    """Return equal data whose mappings, at every depth, have their keys in another order."""
    if not isinstance(data, dict):
        return data
    keys = list(data)
    random.shuffle(keys)
    return {k: shuffled(data[k], random) for k in keys}


def test_canonical_json_is_one_compact_ascii_text() -> None:
    text = canonical_json({"b": [1, {"z": None, "é": True}], "a": 0.1})
    assert text == '{"a":0.1,"b":[1,{"z":null,"\\u00e9":true}]}'


@given(json_values, st.randoms())
def test_canonical_json_keeps_the_data_and_forgets_the_order_of_keys(data: Any, random: Any) -> None:
    assert json.loads(canonical_json(data)) == data
    assert canonical_json(shuffled(data, random)) == canonical_json(data)


@pytest.mark.parametrize(
    "value", [{1, 2}, b"raw", np.float32(1), np.arange(2), object()], ids=lambda v: type(v).__name__
)
def test_canonical_json_refuses_what_is_not_json(value: object) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        canonical_json({"a": [value]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_canonical_json_refuses_numbers_that_json_lacks(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"a": [value]})


def test_fingerprint_is_the_sha256_of_the_canonical_text() -> None:
    assert fingerprint({"b": 1, "a": "é"}) == hashlib.sha256(b'{"a":"\\u00e9","b":1}').hexdigest()


@given(deep_provenances, st.randoms())
def test_fingerprint_does_not_depend_on_the_order_of_nested_keys(provenance: dict[str, Any], random: Any) -> None:
    assert fingerprint(shuffled(provenance, random)) == fingerprint(provenance)


@given(deep_provenances)
def test_fingerprint_moves_with_every_nested_field_and_the_difference_is_named(provenance: dict[str, Any]) -> None:
    assert differences(provenance, provenance) == []
    seen = {fingerprint(provenance)}
    paths = list(leaves(provenance))
    for path in paths:
        changed = with_leaf(provenance, path, "a value too long to be drawn")
        seen.add(fingerprint(changed))
        (found,) = differences(provenance, changed)
        assert found[0] == ".".join(path)
        assert found[2] == "a value too long to be drawn"
    assert len(seen) == len(paths) + 1


@given(provenances, st.randoms())
def test_fingerprint_does_not_depend_on_the_order_of_keys(provenance: dict[str, Any], random: Any) -> None:
    keys = list(provenance)
    random.shuffle(keys)
    assert fingerprint({k: provenance[k] for k in keys}) == fingerprint(provenance)


@given(provenances, json_values)
def test_fingerprint_moves_with_every_value(provenance: dict[str, Any], value: Any) -> None:
    for key, old in provenance.items():
        changed = copy.deepcopy(provenance)
        changed[key] = value
        same = canonical_json(old) == canonical_json(value)
        assert (fingerprint(changed) == fingerprint(provenance)) == same


def test_nan_has_no_fingerprint() -> None:
    with pytest.raises(ValueError, match="JSON"):
        fingerprint({"mean": float("nan")})


@given(st.lists(st.text(max_size=4), max_size=5), st.lists(st.text(max_size=4), max_size=5))
def test_ids_digest_tells_any_two_lists_apart(left: list[str], right: list[str]) -> None:
    assert (ids_digest(left) == ids_digest(right)) == (left == right)


def test_ids_digest_keeps_boundaries() -> None:
    assert ids_digest(["ab", "c"]) != ids_digest(["a", "bc"])


def test_differences_are_dotted_and_complete() -> None:
    stored = {"a": {"b": 1, "c": [1, 2]}, "d": 0}
    asked = {"a": {"b": 2, "c": [1, 2]}, "e": None, "d": 0}
    assert differences(stored, asked) == [("a.b", 1, 2), ("e", "(absent)", None)]
    assert differences(stored, {"a": 5, "d": 0}) == [("a", {"b": 1, "c": [1, 2]}, 5)]


@given(st.integers(1, 10**9), st.integers(1, 10**7))
def test_row_groups_are_powers_of_two_within_bounds(row_bytes: int, rows: int) -> None:
    size = rows_per_group_for(row_bytes, rows)
    assert size & (size - 1) == 0
    assert 1 <= size <= 1024
    assert size == 1 or size * row_bytes <= 32 << 20
    assert size <= max(32, rows // 8)


@given(st.integers(1, 10**7), st.integers(1, 10**6), st.integers(1, 1 << 26), st.integers(1, 4096))
def test_row_groups_are_the_largest_that_the_bounds_allow(row_bytes: int, rows: int, target: int, most: int) -> None:
    size = rows_per_group_for(row_bytes, rows, target_bytes=target, most=most)
    assert size <= most
    assert 2 * size > min(most, target // row_bytes, max(32, rows // 8)) or 2 * size * row_bytes > target


@given(st.integers(0, 50), st.integers(1, 60))
def test_row_groups_cover_every_row_once_in_order(rows: int, size: int) -> None:
    spec = StoreSpec(sample_ids=tuple(map(str, range(rows))), arrays=(), columns=(), provenance={}, rows_per_group=size)
    covered = [row for group in range(spec.groups) for row in range(rows)[spec.group_rows(group)]]
    assert covered == list(range(rows))
    assert all(len(range(rows)[spec.group_rows(g)]) == size for g in range(spec.groups - 1))


@given(
    index=st.integers(0, 9),
    sizes=st.tuples(*[st.integers(1, 2000)] * 3),
    reduction=st.floats(1, 64),
)
def test_level_specs_survive_json_text(index: int, sizes: tuple[int, int, int], reduction: float) -> None:
    level = LevelSpec(index=index, channels=sizes[0], reduction=reduction, height=sizes[1], width=sizes[2])
    again = LevelSpec.from_json(json.loads(json.dumps(level.to_json())))
    assert again == level
    assert again.name == f"level_{index}"


@given(
    name=st.text(min_size=1, max_size=6),
    axes=st.lists(st.tuples(st.text(min_size=1, max_size=4), st.integers(0, 300)), max_size=3),
    dtype=st.sampled_from(["float16", "float32", "uint8", "int64", "bool", "string"]),
    attrs=st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=3),
)
def test_array_specs_survive_json_text(
    name: str, axes: list[tuple[str, int]], dtype: str, attrs: dict[str, Any]
) -> None:
    dims, shape = tuple(d for d, _ in axes), tuple(n for _, n in axes)
    array = ArraySpec(name=name, dims=dims, shape=shape, dtype=dtype, attrs=attrs)
    again = ArraySpec.from_json(json.loads(json.dumps(array.to_json())))
    assert again == array
    assert again.row_bytes == array.row_bytes


@pytest.mark.parametrize(("dtype", "nbytes"), [("float16", 24), ("float32", 48), ("uint8", 12), ("string", 32 * 12)])
def test_bytes_of_a_row_are_counted_uncompressed(dtype: str, nbytes: int) -> None:
    assert ArraySpec(name="a", shape=(3, 4), dtype=dtype).row_bytes == nbytes
    assert ArraySpec(name="a", dtype=dtype).row_bytes == nbytes // 12


def test_feature_maps_get_one_array_a_level_on_its_own_grid() -> None:
    levels = [LevelSpec(index=i, channels=8 << i, reduction=4 << i, height=56 >> i, width=28 >> i) for i in range(2)]
    fine, coarse = level_arrays(levels, "float32")
    assert (fine.name, fine.dims, fine.shape) == ("level_0", ("channel_0", "y_0", "x_0"), (8, 56, 28))
    assert (coarse.name, coarse.dims, coarse.shape) == ("level_1", ("channel_1", "y_1", "x_1"), (16, 28, 14))
    assert {fine.dtype, coarse.dtype} == {"float32"}


@pytest.mark.parametrize("size", [0, -4])
def test_row_groups_of_no_rows_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {size}"):
        StoreSpec(sample_ids=("a",), arrays=(), columns=(), provenance={}, rows_per_group=size)


def test_specs_survive_json() -> None:
    level = LevelSpec(index=2, channels=384, reduction=16.0, height=14, width=14)
    assert LevelSpec.from_json(level.to_json()) == level
    array = ArraySpec(name="level_2", dims=("c", "y"), shape=(3, 4), dtype="float32", attrs={"a": 1})
    assert ArraySpec.from_json(array.to_json()) == array


def test_equal_names_are_refused() -> None:
    array = ArraySpec(name="split", shape=(2,))
    with pytest.raises(ValueError, match="unique"):
        StoreSpec(sample_ids=("a",), arrays=(array,), columns=(array,), provenance={}, rows_per_group=1)
