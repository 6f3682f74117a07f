"""Identity and layout, without touching a disk."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache_stores import ArraySpec, LevelSpec, StoreSpec, fingerprint, ids_digest
from embedcache_stores.schema import canonical_json, differences, rows_per_group_for

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
provenances = st.dictionaries(st.text(max_size=4), json_values, min_size=1, max_size=5)


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
    assert differences(stored, asked) == [("a.b", 1, 2)]
    assert differences(stored, {"a": 5, "d": 0}) == [("a", {"b": 1, "c": [1, 2]}, 5)]


@given(st.integers(1, 10**9), st.integers(1, 10**7))
def test_row_groups_are_powers_of_two_within_bounds(row_bytes: int, rows: int) -> None:
    size = rows_per_group_for(row_bytes, rows)
    assert size & (size - 1) == 0
    assert 1 <= size <= 1024
    assert size == 1 or size * row_bytes <= 32 << 20
    assert size <= max(32, rows // 8)


def test_specs_survive_json() -> None:
    level = LevelSpec(index=2, channels=384, reduction=16.0, height=14, width=14)
    assert LevelSpec.from_json(level.to_json()) == level
    array = ArraySpec(name="level_2", dims=("c", "y"), shape=(3, 4), dtype="float32", attrs={"a": 1})
    assert ArraySpec.from_json(array.to_json()) == array


def test_equal_names_are_refused() -> None:
    array = ArraySpec(name="split", shape=(2,))
    with pytest.raises(ValueError, match="unique"):
        StoreSpec(sample_ids=("a",), arrays=(array,), columns=(array,), provenance={}, rows_per_group=1)
