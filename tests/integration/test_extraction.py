"""Extraction with a real backbone on small images: what ends up in the store."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embedcache.backbones._registry import get_backbone
from embedcache.backbones._weights import find_weights
from embedcache.datasets._registry import open_dataset
from embedcache.datasets._spec import OpenOptions
from embedcache.errors import FeatureError, SampleError, SettingError
from embedcache.extraction import extract
from embedcache.extraction_plan import ExtractionPlan, ExtractOptions, choose_samples, plan_extraction
from embedcache.synthetic import make_scenes
from embedcache_stores import FeatureStore, FingerprintMismatchError, StoreLockedError
from embedcache_stores.writer import FeatureWriter

Hiera = Callable[..., Any]
BASE = ExtractOptions(weights="random", input_size=64, what="both", batch_size=8, device="cpu")


def plan(chips: Path, cache: Path, **changes: Any) -> ExtractionPlan:
    """A plan whose row groups are small, so that several are written."""
    made = plan_extraction(
        open_dataset(f"folder:{chips}"), "sam2_hiera_tiny", cache, dataclasses.replace(BASE, **changes)
    )
    return dataclasses.replace(made, spec=dataclasses.replace(made.spec, rows_per_group=8))


def files(place: os.PathLike[str]) -> dict[str, bytes]:
    store = Path(place)
    out = {str(p.relative_to(store)): p.read_bytes() for p in store.rglob("*") if p.is_file()}
    root = json.loads(out["zarr.json"])
    root["attributes"]["embedcache"].pop("created")
    return out | {"zarr.json": json.dumps(root).encode()}


def test_stored_features_equal_a_live_forward_pass(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    made = plan(chips, tmp_path / "c", dtype="float32")
    store = FeatureStore(extract(made, extractor=hiera()))
    ids = store.sample_ids.tolist()
    pixels = np.stack([np.asarray(Image.open(chips / i)) for i in ids]).transpose(0, 3, 1, 2)
    mean, std = (torch.tensor(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    x = (torch.from_numpy(pixels) / 255 - mean) / std
    x = torch.nn.functional.interpolate(x, size=(64, 64), mode="bilinear", antialias=True)
    with torch.inference_mode():
        levels = [torch.cat(parts) for parts in zip(*(hiera().module(b) for b in x.split(8)), strict=True)]
    for i, level in enumerate(levels):
        np.testing.assert_allclose(store.array(f"level_{i}")[:], level.numpy(), rtol=1e-4, atol=1e-4)
    pooled = levels[-1].mean(dim=(2, 3)).numpy()
    np.testing.assert_allclose(store.array("pooled_mean")[:], pooled, rtol=1e-4, atol=1e-4)
    halved = FeatureStore(extract(plan(chips, tmp_path / "half"), extractor=hiera()))
    np.testing.assert_allclose(halved.array("pooled_mean")[:], pooled, rtol=2**-10, atol=1e-3)  # float16 has 11 bits
    labels = [("forest", "water").index(i.split("/")[0]) for i in ids]
    assert store.column("label").tolist() == labels


class StopError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_stopped_extraction_resumes_to_identical_bytes(chips: Path, tmp_path: Path, hiera: Hiera, after: int) -> None:
    whole = files(extract(plan(chips, tmp_path / "whole"), extractor=hiera()))
    seen = []

    def stop(progress: Any) -> None:
        seen.append(progress)
        if len(seen) > after:
            raise StopError

    with pytest.raises(StopError):
        extract(plan(chips, tmp_path / "c"), extractor=hiera(), on_progress=stop)
    resumed = plan(chips, tmp_path / "c")
    assert resumed.groups_done >= after - 2  # at most two groups are in flight
    assert files(extract(resumed, extractor=hiera())) == whole


def test_a_complete_store_is_left_alone(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    path = Path(extract(plan(chips, tmp_path / "c"), extractor=hiera()))
    stamps = {p: p.stat().st_mtime_ns for p in path.rglob("*")}
    again = plan(chips, tmp_path / "c")
    assert again.complete
    extract(again)
    assert stamps == {p: p.stat().st_mtime_ns for p in path.rglob("*")}


def test_every_option_that_decides_bytes_moves_the_fingerprint(chips: Path, tmp_path: Path) -> None:
    base = plan(chips, tmp_path / "c").spec.recipe
    deciding: list[dict[str, Any]] = [
        {"weights": "random:1"},
        {"input_size": 96},
        {"dtype": "float32"},
        {"dtype": "bfloat16"},
        {"dtype": "int8"},
        {"what": "pooled"},
        {"limit": 20},
        {"precision": "bf16"},
    ]
    moved = [plan(chips, tmp_path / "c", **change).spec.recipe for change in deciding]
    assert len({base, *moved}) == 1 + len(deciding)
    rest: list[dict[str, Any]] = [
        {"batch_size": 4},
        {"workers": 5},
        {"compression": "zstd"},
        {"max_saturation": 0.1},
        {"skip_bad": True},
        {"tag": "x"},
        {"coords": False},
    ]
    assert {plan(chips, tmp_path / "c", **change).spec.recipe for change in rest} == {base}


def test_labels_and_bands_move_the_fingerprint(chips: Path, tmp_path: Path) -> None:
    def now(**options: Any) -> str:
        source = open_dataset(f"folder:{chips}", None, OpenOptions(**options))
        return plan_extraction(source, "sam2_hiera_tiny", tmp_path / "c", BASE).spec.recipe

    base = now()
    assert now(bands="RED,GREEN,BLUE") == base  # what was assumed, said aloud
    assert now(bands="BLUE,GREEN,RED") != base
    assert now(units="unit") != base
    picture = chips / "water" / "water_1.png"
    Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(picture)
    assert now() == base  # what was asked is the same; rows know their content (test_stale_rows.py)
    picture.rename(chips / "forest" / "water_1.png")
    assert now() != base


def test_a_store_of_other_inputs_is_named_tagged_or_replaced(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    extract(plan(chips, tmp_path / "c"), extractor=hiera())
    with pytest.raises(FingerprintMismatchError, match=r"preprocessing.input_size is 64, asked 96"):
        plan(chips, tmp_path / "c", input_size=96)
    assert plan(chips, tmp_path / "c", input_size=96, tag="96").path.name == "sam2_hiera_tiny@96.zarr"
    replaced = plan(chips, tmp_path / "c", dtype="float32", rebuild=True)
    assert FeatureStore(replaced.path).array("pooled_mean").dtype == np.float16  # planning removes nothing
    assert FeatureStore(extract(replaced, extractor=hiera())).array("pooled_mean").dtype == np.float32


def test_an_extraction_killed_before_its_first_record_is_begun_again(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    whole = files(extract(plan(chips, tmp_path / "whole"), extractor=hiera()))
    for rebuild in (False, True):
        made = plan(chips, tmp_path / f"c{rebuild}")
        (made.path / "level_0").mkdir(parents=True)
        (made.path / "level_0" / "zarr.json.123.partial").write_text("{")
        (made.path / "writer.lock").write_text("")
        (made.path / "progress.jsonl").write_text("")
        assert files(extract(plan(chips, tmp_path / f"c{rebuild}", rebuild=rebuild), extractor=hiera())) == whole


def test_auto_precision_is_that_of_the_store(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    extract(plan(chips, tmp_path / "c", precision="bf16"), extractor=hiera())
    assert plan(chips, tmp_path / "c").complete  # a CPU would choose fp32 by itself
    with pytest.raises(FingerprintMismatchError, match="precision is 'bf16', asked 'fp32'"):
        plan(chips, tmp_path / "c", precision="fp32")


def test_skipped_images_keep_their_row_and_change_no_other(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    good = FeatureStore(extract(plan(chips, tmp_path / "good"), extractor=hiera()))
    broken = chips / "water" / "water_9.png"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(SampleError, match=r"water/water_9.png"):
        extract(plan(chips, tmp_path / "c"), extractor=hiera())
    store = FeatureStore(extract(plan(chips, tmp_path / "c", skip_bad=True), extractor=hiera()))
    at = store.sample_ids.tolist().index("water/water_9.png")
    others = np.delete(np.arange(store.rows), at)
    assert store.split[at] == "skipped"
    assert "cannot be read" in store.column("problem")[at]
    assert store.column("label")[at] == -1
    for name in ("pooled_mean", "level_0", "level_3"):
        assert np.isnan(store.read(name, np.array([at]))).all()
        np.testing.assert_array_equal(store.read(name, others), good.read(name, others))
    assert store.split[others].tolist() == good.split[others].tolist()


def test_features_that_overflow_float16_are_refused_with_the_way_out(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    state = {
        k: v * (1e6 if k == "blocks.11.mlp.layers.1.weight" else 1) for k, v in hiera().module.state_dict().items()
    }
    torch.save(state, tmp_path / "huge.pt")
    with pytest.raises(
        FeatureError, match=r"level_3.*forest.*float16.*--dtype bfloat16 or float32|pooled_mean.*float32"
    ):
        extract(plan(chips, tmp_path / "c", weights=str(tmp_path / "huge.pt")))
    stored = FeatureStore(extract(plan(chips, tmp_path / "c32", weights=str(tmp_path / "huge.pt"), dtype="float32")))
    assert np.abs(stored.array("level_3")[:]).max() > 65504


def test_features_that_are_not_finite_are_refused_by_sample(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    state = {k: v.clone() for k, v in hiera().module.state_dict().items()}
    state["blocks.0.mlp.layers.0.bias"][0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    with pytest.raises(FeatureError, match=r"sample 'forest/forest_0.png' is not finite"):
        extract(plan(chips, tmp_path / "c", weights=str(tmp_path / "nan.pt")))


def test_images_of_different_sizes_go_into_one_store(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    before = FeatureStore(extract(plan(chips, tmp_path / "a"), extractor=hiera()))
    picture = chips / "forest" / "forest_4.png"
    Image.open(picture).resize((50, 41)).save(picture)
    after = FeatureStore(extract(plan(chips, tmp_path / "b"), extractor=hiera()))
    at = after.sample_ids.tolist().index("forest/forest_4.png")
    others = np.delete(np.arange(after.rows), at)
    np.testing.assert_allclose(
        after.read("pooled_mean", others), before.read("pooled_mean", others), rtol=1e-3, atol=1e-3
    )
    assert not np.allclose(
        after.read("pooled_mean", np.array([at])), before.read("pooled_mean", np.array([at])), rtol=1e-3
    )


def test_masks_are_stored_beside_maps_and_resized_by_the_nearest_pixel(tmp_path: Path, hiera: Hiera) -> None:
    import h5py

    root = make_scenes(tmp_path / "m-seg", train=4, val=2, test=2, size=32)
    (root / "label_map.json").unlink()
    masks = {}
    for i, file in enumerate(sorted(root.glob("*.hdf5"))):
        with h5py.File(file, "a") as opened:
            masks[file.stem] = np.random.default_rng(i).integers(0, 3, (32, 32)).astype(np.uint8)
            opened["label"] = masks[file.stem]
    (root / "label_stats.json").write_text(json.dumps({k: [0.3, 0.3, 0.4] for k in masks}))
    source = open_dataset(f"geobench:{root}")
    made = plan_extraction(source, "sam2_hiera_tiny", tmp_path / "c", dataclasses.replace(BASE, what=None))
    store = FeatureStore(extract(made, extractor=hiera()))
    assert [a.name for a in store.manifest.arrays] == ["level_0", "level_1", "level_2", "level_3", "mask"]
    for row, sample_id in enumerate(store.sample_ids):
        doubled = masks[sample_id].repeat(2, axis=0).repeat(2, axis=1)  # 32 -> 64
        np.testing.assert_array_equal(store.array("mask")[row], doubled)


def test_time_and_location_reach_the_backbone(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "d").mkdir()
    lines = ["path,label,split,lat,lon,time"]
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "d" / f"{i}.png")
        lines.append(f"{i}.png,{i % 2},train,{10 + i},{20 + i},2020-0{i + 1}-15")
    (tmp_path / "d" / "all.csv").write_text("\n".join(lines))
    source = open_dataset(f"folder:{tmp_path}/d/all.csv")
    options = ExtractOptions(weights="random", input_size=32, device="cpu")
    with_coords = plan_extraction(source, "prithvi_eo_v2_tiny_tl", tmp_path / "a", options)
    without = plan_extraction(
        source, "prithvi_eo_v2_tiny_tl", tmp_path / "b", dataclasses.replace(options, coords=False)
    )
    assert (with_coords.use_time, with_coords.use_location) == (True, True)
    assert with_coords.spec.recipe != without.spec.recipe
    first, second = FeatureStore(extract(with_coords)), FeatureStore(extract(without))
    assert not np.allclose(first.array("pooled_mean")[:], second.array("pooled_mean")[:], atol=1e-3)
    times = first.to_xarray().time.dt.strftime("%Y-%m-%d").values.tolist()
    assert times == [f"2020-0{i}-15" for i in range(1, 7)]
    assert first.column("lat").tolist() == [10, 11, 12, 13, 14, 15]


def test_a_second_extraction_of_the_same_store_is_refused(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    made = plan(chips, tmp_path / "c")
    with FeatureWriter(made.path, made.spec), pytest.raises(StoreLockedError, match="process"):
        extract(made, extractor=hiera())


@pytest.mark.parametrize(("count", "limit"), [(3000, 10), (7, 7), (7, 3), (100, 99), (5, None)])
def test_a_limit_takes_distinct_samples_evenly(count: int, limit: int | None) -> None:
    chosen = choose_samples(count, limit)
    assert len(set(chosen)) == len(chosen) == (limit or count)
    assert chosen[0] == 0
    steps = np.diff(chosen)
    assert steps.max() - steps.min() <= 1
    with pytest.raises(SettingError):
        choose_samples(count, 0)


def test_estimates_of_arithmetic_are_near_the_counted_ones() -> None:
    counted = {"prithvi_eo_v2_300": 123.4, "prithvi_eo_v2_600": 335.0, "dofa_large": 124.0, "sam2_hiera_large": 88.4}
    for name, gflop in counted.items():
        assert get_backbone(name).gflop(224) == pytest.approx(gflop, rel=0.1)


def test_peak_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    make_scenes(tmp_path / "m-x", train=320, val=0, test=0, size=32)
    child = (
        "import sys\n"
        "from embedcache.datasets._registry import open_dataset\n"
        "from embedcache.extraction import extract\n"
        "from embedcache.extraction_plan import ExtractOptions, plan_extraction\n"
        "o = ExtractOptions(weights='random', input_size=96, what='both', limit=int(sys.argv[2]), dtype='float32')\n"
        "p = plan_extraction(open_dataset('geobench:' + sys.argv[1]), 'sam2_hiera_tiny', sys.argv[3], o)\n"
        "extract(p)\n"
        # Not getrusage: its peak is handed down from the parent process.
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "print(int(peak.split()[1]) / 1024, p.spec.row_bytes / 2**20)"
    )
    peaks = []
    for rows in (80, 320):
        command = [sys.executable, "-c", child, str(tmp_path / "m-x"), str(rows), str(tmp_path / f"c{rows}")]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        peaks.append(float(out[0]))
        row_mib = float(out[1])
    # 240 more rows are written, about 96 MiB; a run that kept them would grow by all of it. Allocators wander by 30.
    assert peaks[1] - peaks[0] < 0.75 * 240 * row_mib


def test_weights_of_a_seed_are_the_same_in_every_process(chips: Path, tmp_path: Path, hiera: Hiera) -> None:
    made = plan(chips, tmp_path / "c")
    assert made.weights.identity == find_weights(get_backbone("sam2_hiera_tiny"), "random").identity
    loaded_anew = files(extract(made))
    assert loaded_anew == files(extract(plan(chips, tmp_path / "d"), extractor=hiera()))
