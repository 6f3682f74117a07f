"""What a folder is, read from one small file: complete, partial, or not a store; each said in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedcache_stores import (
    EmbedcacheError,
    IncompleteStoreError,
    NotAStoreError,
    StoreNotFoundError,
    find_stores,
    ids_digest,
    peek_manifest,
    read_manifest,
)
from embedcache_stores.manifest import read_progress

Build = Callable[..., Any]


def test_a_complete_store_states_its_facts(small: Build, tmp_path: Path) -> None:
    made = small(rows=10, rows_per_group=4)
    manifest = read_manifest(made.write(tmp_path / "m-a" / "x.zarr"))
    assert (manifest.state, manifest.dataset, manifest.name) == ("complete", "m-a", "x")
    assert (manifest.rows, manifest.rows_per_group, manifest.groups, manifest.groups_done) == (10, 4, 3, 3)
    assert manifest.fingerprint == manifest.recipe == made.spec.recipe
    assert manifest.provenance == made.spec.provenance
    assert manifest.ids_digest == ids_digest(made.spec.sample_ids)
    assert (manifest.arrays, manifest.columns) == (made.spec.arrays, made.spec.columns)
    assert manifest.attrs == made.spec.attrs
    assert manifest.pooled == ("mean",)
    assert manifest.created is not None
    a_row = 2 * 5 + 2 * 24 + 2 * 36 + 32 + 3 + 8
    assert manifest.nbytes == 10 * a_row


@pytest.mark.parametrize("done", [0, 1, 2, 3])
def test_a_partial_store_is_peeked_at_but_not_read(small: Build, tmp_path: Path, done: int) -> None:
    path = small(rows=10, rows_per_group=4).write(tmp_path / "m-a" / "x.zarr", range(done), commit=False)
    manifest = peek_manifest(path)
    assert (manifest.state, manifest.groups_done, manifest.created) == ("partial", done, None)
    assert manifest.nbytes == min(10, 4 * done) * (2 * 5 + 2 * 24 + 2 * 36 + 32 + 3 + 8)
    sentence = rf"not complete \({done} of 3 row groups are written\)\. Run the same 'embedcache extract' again"
    with pytest.raises(IncompleteStoreError, match=sentence):
        read_manifest(path)


def test_levels_and_random_weights_are_told_from_the_record(small: Build, tmp_path: Path) -> None:
    path = small(backbone={"weights": {"kind": "random"}}).write(tmp_path / "x.zarr")
    commit = path / "zarr.json"
    root = json.loads(commit.read_text())
    level = {"index": 0, "channels": 3, "reduction": 4.0, "height": 4, "width": 2}
    root["attributes"]["embedcache"]["attrs"]["levels"] = [level]
    commit.write_text(json.dumps(root))
    manifest = read_manifest(path)
    assert manifest.random_weights
    assert [found.to_json() for found in manifest.levels] == [level]
    assert not read_manifest(small().write(tmp_path / "y.zarr")).random_weights


@pytest.mark.parametrize("read", [read_manifest, peek_manifest])
def test_nothing_there_is_said_with_where_to_look(read: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"no feature store at '.*x\.zarr'\. 'embedcache ls' shows") as caught:
        read(tmp_path / "x.zarr")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, EmbedcacheError)
    (tmp_path / "x.zarr").write_text("a file")
    with pytest.raises(StoreNotFoundError, match="no feature store at"):
        read(tmp_path / "x.zarr")


def test_an_empty_folder_is_not_a_store_and_both_records_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotAStoreError, match=r"neither a commit record \(zarr\.json\) nor .*\(progress\.jsonl\)"):
        peek_manifest(tmp_path)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "not readable as JSON .*damaged"),
        (b'{"attributes": {', "not readable as JSON .*damaged"),
        (b"\xff\xfe\x00", "not readable as JSON .*damaged"),
        (b"[1, 2]", "does not hold a JSON object; the store is damaged"),
        (b"{}", "is a Zarr group, but embedcache did not write it"),
        (b'{"attributes": {"embedcache": 3}}', "is a Zarr group, but embedcache did not write it"),
        (b'{"attributes": null}', "is a Zarr group, but embedcache did not write it"),
    ],
)
def test_a_root_that_is_not_ours_or_not_whole_is_said(tmp_path: Path, raw: bytes, sentence: str) -> None:
    (tmp_path / "zarr.json").write_bytes(raw)
    for read in (read_manifest, peek_manifest):
        with pytest.raises(NotAStoreError, match=sentence):
            read(tmp_path)


def test_another_schema_version_is_said_of_partial_stores_too(small: Build, tmp_path: Path) -> None:
    progress = small().write(tmp_path / "x.zarr", [0], commit=False) / "progress.jsonl"
    progress.write_bytes(progress.read_bytes().replace(b'"schema_version":2', b'"schema_version":0'))
    with pytest.raises(NotAStoreError, match=r"schema version 0; .* versions 1 to 2\. .*extract again"):
        peek_manifest(progress.parent)


def test_the_commit_record_outranks_a_progress_record_left_beside_it(small: Build, tmp_path: Path) -> None:
    made = small()
    progress = made.write(tmp_path / "x.zarr", [0], commit=False) / "progress.jsonl"
    left = progress.read_bytes()
    made.write(progress.parent)
    progress.write_bytes(left)
    assert (peek_manifest(progress.parent).state, peek_manifest(progress.parent).groups_done) == ("complete", 3)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_progress_record_cut_anywhere_yields_its_whole_lines(recorded: Path, data: st.DataObject) -> None:
    whole = recorded.read_bytes()
    lines = whole.splitlines(keepends=True)
    length = data.draw(st.integers(0, len(whole)))
    torn = recorded.parent.with_name("torn.zarr")
    torn.mkdir(exist_ok=True)
    (torn / "progress.jsonl").write_bytes(whole[:length])
    header, records, sound = read_progress(torn)
    kept = [line for end, line in enumerate(lines, 1) if sum(map(len, lines[:end])) <= length]
    assert ([] if header is None else [header, *records.values()]) == [json.loads(line) for line in kept]
    assert sound == len(kept)


@pytest.fixture(scope="module")
def recorded(small: Build, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("progress")
    path: Path = small(rows=5, rows_per_group=2).write(folder / "x.zarr", commit=False)
    return path / "progress.jsonl"


def test_stores_killed_in_their_header_and_strangers_are_not_listed(small: Build, tmp_path: Path) -> None:
    small().write(tmp_path / "m-a" / "good.zarr")
    torn = small().write(tmp_path / "m-a" / "torn.zarr", [0], commit=False) / "progress.jsonl"
    torn.write_bytes(torn.read_bytes()[:50])
    small().write(tmp_path / "m-a" / "deeper" / "down.zarr")
    small().write(tmp_path / "top.zarr")
    small().write(tmp_path / "m-a" / "no_suffix")
    (tmp_path / "m-b" / "damaged.zarr").mkdir(parents=True)
    (tmp_path / "m-b" / "damaged.zarr" / "zarr.json").write_text("{")
    assert [(m.dataset, m.name) for m in find_stores(tmp_path)] == [("m-a", "good")]


def test_a_cache_that_is_empty_absent_or_a_file_is_told_apart(tmp_path: Path) -> None:
    assert list(find_stores(tmp_path)) == []
    with pytest.raises(
        StoreNotFoundError, match=r"no cache at '.*absent'. 'embedcache extract --cache .*absent' makes"
    ):
        list(find_stores(tmp_path / "absent"))
    (tmp_path / "file").write_text("")
    with pytest.raises(NotAStoreError, match="is a file; a cache is a directory of feature stores"):
        list(find_stores(tmp_path / "file"))


FORBIDDEN = frozenset({"torch", "xarray", "dask", "typer", "embedcache"})


def loaded_after(code: str, folder: Path) -> set[str]:
    """Return the top-level packages that a fresh interpreter has loaded after running ``code``."""
    script = f"{code}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=folder, capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("module", ["embedcache_stores", "embedcache_stores.manifest", "embedcache_stores.writer"])
def test_importing_stores_loads_neither_models_nor_views(module: str, tmp_path: Path) -> None:
    loaded = loaded_after(f"import {module}", tmp_path)
    assert "embedcache_stores" in loaded
    assert not loaded & FORBIDDEN


def test_the_check_of_imports_can_fail(tmp_path: Path) -> None:
    for name in FORBIDDEN - {"torch", "xarray", "dask"}:  # the quick ones, by name
        assert name in loaded_after(f"import embedcache_stores, {name}", tmp_path)
    (tmp_path / "torch.py").write_text("")
    code = "import sys; sys.path.insert(0, '.'); import embedcache_stores, torch"
    assert loaded_after(code, tmp_path) & FORBIDDEN == {"torch"}
