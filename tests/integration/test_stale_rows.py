"""Images that change after they were encoded: only their batches are encoded again, and the bytes are those of new."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from embedcache.contents import ContentIndex
from embedcache.datasets._registry import open_dataset
from embedcache.ensemble import Ensemble
from embedcache.extraction import Progress, extract
from embedcache.extraction_plan import ExtractionPlan, ExtractOptions, plan_extraction
from embedcache_stores import FeatureStore, FeatureWriter, IncompleteStoreError, SampleIdMismatchError, open_place
from embedcache_stores.repair import reopen

Hiera = Callable[..., Any]


def plan(chips: Path, cache: Path, **changes: Any) -> ExtractionPlan:
    options = ExtractOptions(weights="random", input_size=64, what="both", batch_size=4, device="cpu", **changes)
    return plan_extraction(open_dataset(f"folder:{chips}"), "sam2_hiera_tiny", cache, options)


def files(place: os.PathLike[str]) -> dict[str, bytes]:
    store = Path(place)
    out = {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}
    root = json.loads(out["zarr.json"])
    root["attributes"]["embedcache"].pop("created")
    return out | {"zarr.json": json.dumps(root).encode()}


def repaint(picture: Path) -> None:
    """Change a picture and nothing else that can be seen: same size, same time of modification."""
    before = picture.stat()
    pixels = np.array(Image.open(picture))
    pixels[0, 0, 0] ^= 1
    for level in range(10):  # a compressed picture of noise keeps its size at some level
        Image.fromarray(pixels).save(picture, compress_level=level)
        if picture.stat().st_size == before.st_size:
            break
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert picture.stat().st_size == before.st_size


def test_stores_of_images_before_and_after_a_change_are_not_joined(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    one, two = (plan(chips, tmp_path / "c", tag=tag) for tag in ("one", "two"))
    first = FeatureStore(extract(one, extractor=hiera()))
    repaint(chips / first.sample_ids[5])
    second = FeatureStore(extract(two, extractor=hiera()))
    with pytest.raises(SampleIdMismatchError, match=f"1 images or masks changed .* {first.sample_ids[5]!r}"):
        Ensemble([first, second])
    again = extract(plan(chips, tmp_path / "c", tag="one"), extractor=hiera())
    assert Ensemble([FeatureStore(again), second]).rows == 40


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_only_batches_with_changed_images_are_encoded_again_and_the_bytes_are_those_of_a_new_store(
    chips: Path, tmp_path: Path, hiera: Hiera, dtype: str
) -> None:
    first = extract(plan(chips, tmp_path / "c", dtype=dtype), extractor=hiera())
    before = FeatureStore(first)
    rows = [1, 2, 37]
    for row in rows:
        repaint(chips / before.sample_ids[row])
    again = plan(chips, tmp_path / "c", dtype=dtype)
    assert again.stale == tuple(rows)
    assert not again.complete
    assert again.rows_done == 37
    assert any("3 images changed" in note for note in again.notes)
    seen: list[Progress] = []
    extract(again, extractor=hiera(), on_progress=seen.append)
    expected = 40 if dtype == "int8" else 8  # two batches of four; an int8 scale spans its row group
    assert (seen[-1].new_rows, seen[-1].rows, seen[-1].total) == (expected, 40, 40)
    anew = extract(plan(chips, tmp_path / "new", dtype=dtype), extractor=hiera())
    assert files(first) == files(anew)
    after = FeatureStore(first)
    assert after.manifest.recipe == before.manifest.recipe
    assert after.manifest.fingerprint != before.manifest.fingerprint
    assert plan(chips, tmp_path / "c", dtype=dtype).complete


def test_images_that_change_while_a_store_is_half_written_are_noticed_too(
    chips: Path, tmp_path: Path, hiera: Hiera
) -> None:
    def stop(progress: Progress) -> None:
        if progress.rows >= 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract(plan(chips, tmp_path / "c"), extractor=hiera(), on_progress=stop)
    begun = plan(chips, tmp_path / "c")
    assert begun.groups_done == 1
    ids = begun.spec.sample_ids
    repaint(chips / ids[5])
    again = plan(chips, tmp_path / "c")
    assert again.stale == (5,)
    store = extract(again, extractor=hiera())
    assert files(store) == files(extract(plan(chips, tmp_path / "new"), extractor=hiera()))


def test_a_mended_image_is_encoded_and_no_longer_skipped(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    picture = chips / "forest" / "forest_4.png"
    whole = picture.read_bytes()
    picture.write_bytes(whole[:50])
    store = FeatureStore(extract(plan(chips, tmp_path / "c", skip_bad=True), extractor=hiera()))
    row = store.sample_ids.tolist().index("forest/forest_4.png")
    assert store.split[row] == "skipped"
    picture.write_bytes(whole)
    again = plan(chips, tmp_path / "c", skip_bad=True)
    assert again.stale == (row,)
    extract(again, extractor=hiera())
    mended = FeatureStore(store.path)
    assert mended.split[row] != "skipped"
    assert mended.column("problem")[row] == ""
    assert np.isfinite(mended.read("pooled_mean", np.arange(40))).all()
    assert files(store.path) == files(extract(plan(chips, tmp_path / "new"), extractor=hiera()))


def test_a_kill_between_reopening_and_the_end_is_continued(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    path = extract(plan(chips, tmp_path / "c"), extractor=hiera())
    repaint(chips / FeatureStore(path).sample_ids[0])
    expected = files(extract(plan(chips, tmp_path / "new"), extractor=hiera()))
    reopen(path, redo={0: [0]})  # what extract does first
    with pytest.raises(IncompleteStoreError):
        FeatureStore(path)
    with FeatureWriter(path, plan(chips, tmp_path / "c").spec) as writer:
        kept = writer.kept(0)
        assert writer.missing == [0]
        assert kept is not None
        assert kept.redo == (0,)
    assert files(extract(plan(chips, tmp_path / "c"), extractor=hiera())) == expected


def test_a_reader_that_has_the_store_open_never_sees_a_mixture(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    path = extract(plan(chips, tmp_path / "c"), extractor=hiera())
    reader = FeatureStore(path)
    before = reader.read("level_0", np.arange(40))
    for row in range(0, 40, 5):
        repaint(chips / reader.sample_ids[row])
    extract(plan(chips, tmp_path / "c"), extractor=hiera())
    np.testing.assert_array_equal(reader.read("level_0", np.arange(40)), before)  # mapped before, so the old rows
    assert not np.array_equal(FeatureStore(path).read("level_0", np.arange(40)), before)


class TestIndex:
    """Hashes are remembered only where no change can have gone unseen."""

    def settled(self, path: Path) -> Path:
        """Make a file; that it changed long ago is said by the clock, since no change time can be set."""
        path.write_bytes(b"content")
        return path

    def test_what_is_settled_is_not_read_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = self.settled(tmp_path / "a")
        later = file.stat().st_ctime_ns + 3_000_000_000
        monkeypatch.setattr("time.time_ns", lambda: later)
        index = ContentIndex(open_place(tmp_path))
        value = index.hash_of([file])
        index.save()
        monkeypatch.setattr("hashlib.file_digest", lambda *_: pytest.fail("read again"))
        assert ContentIndex(open_place(tmp_path)).hash_of([file]) == value

    @pytest.mark.parametrize("shift_s", [-3600, 0, 1])
    def test_a_fresh_file_or_a_clock_that_went_backwards_is_not_trusted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift_s: int
    ) -> None:
        file = self.settled(tmp_path / "a")
        now = file.stat().st_ctime_ns + shift_s * 1_000_000_000
        monkeypatch.setattr("time.time_ns", lambda: now)
        index = ContentIndex(open_place(tmp_path))
        first = index.hash_of([file])
        index.save()
        assert not (tmp_path / "contents.json").exists()
        file.write_bytes(b"CONTENT")
        assert ContentIndex(open_place(tmp_path)).hash_of([file]) != first

    def test_a_change_that_keeps_size_and_time_is_seen(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        file = self.settled(tmp_path / "a")
        later = file.stat().st_ctime_ns + 3_000_000_000
        monkeypatch.setattr("time.time_ns", lambda: later)
        index = ContentIndex(open_place(tmp_path))
        first, times = index.hash_of([file]), file.stat()
        time.sleep(0.05)  # the kernel's clock of files ticks every few milliseconds; the index waits two seconds for it
        file.write_bytes(b"CONTENT")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert index.hash_of([file]) != first

    @pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"x": 3}'])
    def test_a_damaged_index_is_made_again(self, tmp_path: Path, damage: bytes) -> None:
        file = self.settled(tmp_path / "a")
        value = ContentIndex(open_place(tmp_path)).hash_of([file])
        (tmp_path / "contents.json").write_bytes(damage)
        assert ContentIndex(open_place(tmp_path)).hash_of([file]) == value

    def test_a_missing_file_has_no_hash_and_order_counts(self, tmp_path: Path) -> None:
        a, b = self.settled(tmp_path / "a"), tmp_path / "b"
        index = ContentIndex(open_place(tmp_path))
        assert index.hash_of([b]) == ""
        b.write_bytes(b"other")
        assert index.hash_of([a, b]) != index.hash_of([b, a])
        assert len(index.hash_of([a, b])) == len(index.hash_of([a])) == 32
