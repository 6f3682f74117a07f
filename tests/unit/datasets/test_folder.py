"""Folders of one's own images: what is read, what is said of them, what is refused."""

from __future__ import annotations

import hashlib
import random
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from embedcache.datasets._registry import open_dataset
from embedcache.datasets._spec import OpenOptions
from embedcache.datasets.folder import FolderSource
from embedcache.errors import BandError, DatasetError, SampleError, SettingError, UnknownNameError

PictureWriter = Callable[..., npt.NDArray[Any]]
GeoTiffWriter = Callable[..., None]
RGB = ("RED", "GREEN", "BLUE")


def opened(path: Path, **options: Any) -> FolderSource:
    return FolderSource(path, OpenOptions(**options))


def read_all(source: FolderSource, index: int = 0) -> npt.NDArray[Any]:
    return source.read(index, source.info.bands).image


def split_of(source: FolderSource) -> dict[str, str]:
    return dict(zip(source.sample_ids, source.splits, strict=True))


# pictures


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_rgb_picture_is_read_pixel_for_pixel(
    tmp_path: Path, write_picture: PictureWriter, write_geotiff: GeoTiffWriter, suffix: str
) -> None:
    pixels = write_picture(tmp_path / "k" / "a.png", seed=3)
    if suffix == "tif":
        write_geotiff(tmp_path / "k" / "a.tif", np.moveaxis(pixels, 2, 0))
        (tmp_path / "k" / "a.png").unlink()
    source = opened(tmp_path)
    sample = source.read(0, RGB)
    assert sample.sample_id == f"k/a.{suffix}"
    assert sample.image.dtype == np.uint8
    assert (source.info.bands, source.info.units, source.info.task) == (RGB, "uint8", "classification")
    np.testing.assert_array_equal(sample.image, np.moveaxis(pixels, 2, 0))
    assert (sample.target, sample.time, sample.lat, sample.lon) == (0, None, None, None)


def test_jpeg_is_read_as_pillow_decodes_it(tmp_path: Path, write_picture: PictureWriter) -> None:
    write_picture(tmp_path / "k" / "a.jpg", size=20)
    decoded = np.asarray(Image.open(tmp_path / "k" / "a.jpg"))
    np.testing.assert_array_equal(read_all(opened(tmp_path)), np.moveaxis(decoded, 2, 0))


def test_only_the_bands_asked_are_read_in_the_order_asked(tmp_path: Path, write_picture: PictureWriter) -> None:
    pixels = write_picture(tmp_path / "k" / "a.png")
    image = opened(tmp_path).read(0, ("BLUE", "RED")).image
    np.testing.assert_array_equal(image, np.stack([pixels[..., 2], pixels[..., 0]]))


def test_palette_picture_becomes_the_colours_it_shows(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([0, 0, 0, 200, 100, 50])
    picture.save(tmp_path / "k" / "a.png")
    image = read_all(opened(tmp_path))
    assert image.shape == (3, 4, 4)
    assert image[:, 2, 2].tolist() == [200, 100, 50]


def test_transparency_is_dropped_and_the_colours_kept(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "k" / "a.png")
    np.testing.assert_array_equal(read_all(opened(tmp_path)), np.moveaxis(pixels[..., :3], 2, 0))


def test_greyscale_picture_is_one_band_that_must_be_named(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "k" / "a.png")
    with pytest.raises(BandError, match="has 1 bands without standard names; name them in file order"):
        opened(tmp_path)
    source = opened(tmp_path, bands="NIR")
    assert source.info.bands == ("NIR",)
    np.testing.assert_array_equal(read_all(source), grey[None])


def test_16_bit_greyscale_png_keeps_its_16_bits_and_is_taken_for_digital_numbers(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    grey = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "k" / "a.png")
    source = opened(tmp_path, bands="B08")
    assert source.info.units == "dn"
    np.testing.assert_array_equal(read_all(source).astype(np.int64), grey[None].astype(np.int64))


def test_one_greyscale_picture_among_rgb_ones_is_refused_with_its_name(
    tmp_path: Path, write_picture: PictureWriter
) -> None:
    write_picture(tmp_path / "k" / "a.png")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(tmp_path / "k" / "b.png")
    with pytest.raises(SampleError, match=r"^sample 'k/b\.png' .*: it has 1 channels where the others have 3\."):
        read_all(opened(tmp_path), 1)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_picture_is_refused_with_its_name(tmp_path: Path, write_picture: PictureWriter, suffix: str) -> None:
    for name in "ab":
        write_picture(tmp_path / "k" / f"{name}.{suffix}", size=32)
    bad = tmp_path / "k" / f"b.{suffix}"
    whole = bad.read_bytes()
    source = opened(tmp_path)
    for length in (0, 1, 10, len(whole) // 4, len(whole) // 2, len(whole) - 40):
        bad.write_bytes(whole[:length])
        with pytest.raises(SampleError, match=rf"^sample 'k/b\.{suffix}' .*cannot be read") as caught:
            read_all(source, 1)
        assert caught.value.sample_id == f"k/b.{suffix}"
    assert read_all(source, 0).shape == (3, 32, 32)


def test_text_that_is_called_png_is_refused_with_its_name(tmp_path: Path, write_picture: PictureWriter) -> None:
    write_picture(tmp_path / "k" / "a.png")
    (tmp_path / "k" / "b.png").write_text("<html>404</html>")
    with pytest.raises(SampleError, match=r"^sample 'k/b\.png'"):
        read_all(opened(tmp_path), 1)


def test_png_whose_pixels_were_altered_is_refused_with_its_name(tmp_path: Path, write_picture: PictureWriter) -> None:
    write_picture(tmp_path / "k" / "a.png")
    header = struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 200)[:-6] + b"\1\2\3\4\5\6"), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (tmp_path / "k" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(SampleError, match=r"^sample 'k/b\.png'"):
        read_all(opened(tmp_path), 1)


# GeoTIFF


def test_geotiff_with_band_descriptions_names_its_own_bands(tmp_path: Path, write_geotiff: GeoTiffWriter) -> None:
    pixels = np.random.default_rng(0).integers(0, 9000, (4, 6, 7)).astype(np.uint16)
    write_geotiff(tmp_path / "k" / "a.tif", pixels, descriptions=["B02", "green", "Red", "B8A"])
    source = opened(tmp_path)
    assert source.info.bands == ("BLUE", "GREEN", "RED", "NIR_NARROW")
    assert source.info.units == "dn"
    assert source.info.notes[1:] == ()
    image = source.read(0, ("NIR_NARROW", "BLUE")).image
    assert image.dtype == np.uint16
    np.testing.assert_array_equal(image, pixels[[3, 0]])


def test_names_given_by_option_win_over_those_in_the_file(tmp_path: Path, write_geotiff: GeoTiffWriter) -> None:
    write_geotiff(tmp_path / "k" / "a.tif", np.zeros((2, 4, 4), np.int16), descriptions=["B02", "B03"])
    assert opened(tmp_path, bands="B11,B12").info.bands == ("SWIR_1", "SWIR_2")


def test_geotiff_of_many_nameless_bands_asks_for_names(tmp_path: Path, write_geotiff: GeoTiffWriter) -> None:
    write_geotiff(tmp_path / "k" / "a.tif", np.zeros((13, 4, 4), np.uint16))
    with pytest.raises(BandError, match=r"a\.tif' has 13 bands without standard names; .*--bands B01,B02"):
        opened(tmp_path)


@pytest.mark.parametrize("bands", ["RED", "RED,GREEN,BLUE,NIR"])
def test_wrong_number_of_band_names_is_refused_with_both_numbers(
    tmp_path: Path, write_picture: PictureWriter, bands: str
) -> None:
    write_picture(tmp_path / "k" / "a.png")
    with pytest.raises(BandError, match=rf"--bands names {bands.count(',') + 1} bands, but .*a\.png' has 3\."):
        opened(tmp_path, bands=bands)


def test_three_nameless_bands_are_taken_for_rgb_and_that_is_noted(tmp_path: Path, write_picture: PictureWriter) -> None:
    write_picture(tmp_path / "k" / "a.png")
    assert any("taken to be RED, GREEN, BLUE" in note for note in opened(tmp_path).info.notes)
    assert not any("taken to be" in note for note in opened(tmp_path, bands="NIR,RED,GREEN").info.notes)


@pytest.mark.parametrize("name", ["corrected", "as-published"])
def test_band_option_of_geobench_is_refused_for_a_folder(
    tmp_path: Path, write_picture: PictureWriter, name: str
) -> None:
    write_picture(tmp_path / "k" / "a.png")
    with pytest.raises(SettingError, match=f"--bands {name} is for GEO-Bench datasets"):
        opened(tmp_path, bands=name)


def test_partition_is_refused_for_a_folder(tmp_path: Path, write_picture: PictureWriter) -> None:
    write_picture(tmp_path / "k" / "a.png")
    with pytest.raises(SettingError, match="--partition is for GEO-Bench datasets"):
        opened(tmp_path, partition="default")


def test_truncated_geotiff_is_refused_with_its_name(tmp_path: Path, write_geotiff: GeoTiffWriter) -> None:
    pixels = np.random.default_rng(0).integers(0, 9000, (3, 32, 32)).astype(np.uint16)
    for name in "ab":
        write_geotiff(tmp_path / "k" / f"{name}.tif", pixels)
    bad = tmp_path / "k" / "b.tif"
    whole = bad.read_bytes()
    source = opened(tmp_path)
    for length in (0, 4, 100, len(whole) // 2, len(whole) - 10):
        bad.write_bytes(whole[:length])
        with pytest.raises(SampleError, match=r"^sample 'k/b\.tif' .*cannot be read"):
            read_all(source, 1)


def test_geotiff_with_another_number_of_bands_is_refused_with_its_name(
    tmp_path: Path, write_geotiff: GeoTiffWriter
) -> None:
    write_geotiff(tmp_path / "k" / "a.tif", np.zeros((4, 4, 4), np.uint16))
    write_geotiff(tmp_path / "k" / "b.tif", np.zeros((3, 4, 4), np.uint16))
    with pytest.raises(SampleError, match=r"^sample 'k/b\.tif' .*: it has 3 bands where the others have 4\."):
        read_all(opened(tmp_path, bands="R,G,B,N"), 1)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_that_are_no_numbers_are_refused_with_the_samples_name(
    tmp_path: Path, write_geotiff: GeoTiffWriter, value: float
) -> None:
    pixels = np.ones((3, 4, 4), np.float32)
    write_geotiff(tmp_path / "k" / "a.tif", pixels)
    pixels[1, 2, 2] = value
    write_geotiff(tmp_path / "k" / "b.tif", pixels)
    source = opened(tmp_path, units="reflectance")
    with pytest.raises(SampleError, match=r"^sample 'k/b\.tif' .*: it holds NaN pixels"):
        source.read(1, RGB)
    assert source.read(1, ("RED", "BLUE")).image.shape == (2, 4, 4), "the band with NaN was not asked for"


def test_float_pixels_without_units_are_refused_with_the_choices(tmp_path: Path, write_geotiff: GeoTiffWriter) -> None:
    write_geotiff(tmp_path / "k" / "a.tif", np.ones((3, 4, 4), np.float32))
    with pytest.raises(
        SettingError, match=r"holds float32 pixels, whose scale cannot be guessed; say it with --units dn"
    ):
        opened(tmp_path)


@pytest.mark.parametrize("units", ["dn", "reflectance", "uint8", "unit"])
def test_units_given_by_option_win(tmp_path: Path, write_picture: PictureWriter, units: str) -> None:
    write_picture(tmp_path / "k" / "a.png")
    assert opened(tmp_path, units=units).info.units == units


def test_georeferenced_geotiff_tells_where_its_centre_is(tmp_path: Path, write_geotiff: GeoTiffWriter) -> None:
    pixels = np.zeros((3, 10, 20), np.uint16)
    # UTM zone 33 N: the central meridian, 15 degrees east, is easting 500 000; the equator is northing 0.
    write_geotiff(tmp_path / "k" / "a.tif", pixels, crs="EPSG:32633", transform=from_origin(499_900, 50, 10, 10))
    write_geotiff(tmp_path / "k" / "b.tif", pixels, crs="EPSG:4326", transform=from_origin(10, 50, 0.1, 0.1))
    source = opened(tmp_path)
    assert source.info.has_location
    first, second = source.read(0, RGB), source.read(1, RGB)
    assert (first.lat, first.lon) == pytest.approx((0.0, 15.0), abs=1e-6)
    assert (second.lat, second.lon) == pytest.approx((49.5, 11.0), abs=1e-9)


def test_geotiff_without_georeference_has_no_location(tmp_path: Path, write_geotiff: GeoTiffWriter) -> None:
    write_geotiff(tmp_path / "k" / "a.tif", np.zeros((3, 4, 4), np.uint16))
    source = opened(tmp_path)
    sample = source.read(0, RGB)
    assert not source.info.has_location
    assert (sample.lat, sample.lon) == (None, None)


def test_location_in_the_csv_wins_over_that_of_the_file(tmp_path: Path, write_geotiff: GeoTiffWriter) -> None:
    transform = from_origin(10, 50, 0.1, 0.1)
    write_geotiff(tmp_path / "a.tif", np.zeros((3, 4, 4), np.uint16), crs="EPSG:4326", transform=transform)
    (tmp_path / "t.csv").write_text("path,label,lat,lon\na.tif,0,-33.5,151.25\n")
    sample = opened(tmp_path / "t.csv").read(0, RGB)
    assert (sample.lat, sample.lon) == (-33.5, 151.25)


# tables, splits, ids


def test_csv_gives_targets_times_and_places_to_pictures(tmp_path: Path, write_picture: PictureWriter) -> None:
    pixels = [write_picture(tmp_path / "img" / f"{i}.png", seed=i) for i in range(3)]
    (tmp_path / "t.csv").write_text(
        "path,label,split,lat,lon,time\n"
        "img/2.png,b,test,1,2,1970-01-02\n"
        "img/0.png,a,train,3,4,1970-01-03\n"
        "img/1.png,b,val,5,6,1970-01-04\n"
    )
    source = opened(tmp_path / "t.csv")
    assert source.info.name == tmp_path.name
    assert (source.info.has_time, source.info.has_location) == (True, True)
    assert source.info.class_names == ("a", "b")
    assert split_of(source) == {"img/2.png": "test", "img/0.png": "train", "img/1.png": "val"}
    for index, (number, target, day) in enumerate([(2, 1, 1), (0, 0, 2), (1, 1, 3)]):
        sample = source.read(index, RGB)
        np.testing.assert_array_equal(sample.image, np.moveaxis(pixels[number], 2, 0))
        assert (sample.target, sample.time) == (target, day * 86400.0)
        assert (sample.lat, sample.lon) == (1.0 + 2 * index, 2.0 + 2 * index)


def test_dataset_has_no_time_where_one_image_has_none(tmp_path: Path, write_picture: PictureWriter) -> None:
    for name in "ab":
        write_picture(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("path,label,time,lat,lon\na.png,0,2020-01-01,1,2\nb.png,0,,,\n")
    source = opened(tmp_path / "t.csv")
    assert (source.info.has_time, source.info.has_location) == (False, False)


def test_multilabel_csv_makes_a_multilabel_dataset(tmp_path: Path, write_picture: PictureWriter) -> None:
    for name in "ab":
        write_picture(tmp_path / f"{name}.png")
    (tmp_path / "t.csv").write_text("path,label,split\na.png,x|z,train\nb.png,y,test\n")
    source = opened(tmp_path / "t.csv")
    assert source.info.task == "multilabel"
    assert source.info.class_names == ("x", "y", "z")
    assert [source.read(i, RGB).target.tolist() for i in (0, 1)] == [[1, 0, 1], [0, 1, 0]]


def test_missing_image_is_refused_with_its_name(tmp_path: Path, write_picture: PictureWriter) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,label\na.png,0\ngone.png,0\ngone.tif,0\n")
    source = opened(tmp_path / "t.csv")
    with pytest.raises(SampleError, match=r"^sample 'gone\.png' .*does not exist"):
        source.read(1, RGB)
    with pytest.raises(SampleError, match=r"^sample 'gone\.tif' "):
        source.read(2, RGB)
    with pytest.raises(DatasetError, match=r"^2 of 3 images do not exist, the first is '.*gone\.png'"):
        source.revision(range(3))


def test_dataset_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere' does not exist"):
        opened(tmp_path / "nowhere")


@pytest.mark.parametrize("again", ["a.png", "./a.png"])
def test_image_that_is_named_twice_is_refused(tmp_path: Path, write_picture: PictureWriter, again: str) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text(f"path,label,split\na.png,0,train\n{again},1,test\n")
    with pytest.raises(DatasetError, match=r"names 1 samples more than once, the first is 'a\.png'"):
        opened(tmp_path / "t.csv")


def test_split_given_to_some_images_only_is_refused_naming_one_without(
    tmp_path: Path, write_picture: PictureWriter
) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,label,split\na.png,0,train\nb.png,0,\n")
    with pytest.raises(DatasetError, match=r"'b\.png' has none; give all of them one, or none"):
        opened(tmp_path / "t.csv")


def many_rows() -> list[str]:
    return [f"{c}/{i}.png,{c}" for c, n in (("a", 50), ("b", 20), ("c", 5)) for i in range(n)]


def test_images_without_splits_are_split_60_20_20_within_each_class(
    tmp_path: Path, write_picture: PictureWriter
) -> None:
    write_picture(tmp_path / "a" / "0.png")
    (tmp_path / "t.csv").write_text("path,label\n" + "\n".join(many_rows()))
    source = opened(tmp_path / "t.csv")
    counts = Counter((sample_id[0], split) for sample_id, split in split_of(source).items())
    assert {c: [counts[c, s] for s in ("train", "val", "test")] for c in "abc"} == {
        "a": [30, 10, 10],
        "b": [12, 4, 4],
        "c": [3, 1, 1],
    }
    assert any("split 60/20/20" in note for note in source.info.notes)


def test_split_of_an_image_does_not_depend_on_the_order_of_the_table(
    tmp_path: Path, write_picture: PictureWriter
) -> None:
    write_picture(tmp_path / "a" / "0.png")
    rows = many_rows()
    (tmp_path / "t.csv").write_text("path,label\n" + "\n".join(rows))
    before = split_of(opened(tmp_path / "t.csv"))
    random.Random(5).shuffle(rows)
    rows.insert(0, rows.pop(rows.index("a/0.png,a")))  # the first image is the one that is looked at
    (tmp_path / "t.csv").write_text("path,label\n" + "\n".join(rows))
    assert split_of(opened(tmp_path / "t.csv")) == before
    assert before["a/0.png"] in {"train", "val", "test"}


def test_splits_follow_the_hash_of_the_path_and_not_the_name(tmp_path: Path, write_picture: PictureWriter) -> None:
    names = [f"{i:02d}.png" for i in range(20)]
    for name in names:
        write_picture(tmp_path / "k" / name, size=2)
    shuffled = sorted(names, key=lambda n: hashlib.sha256(f"k/{n}".encode()).hexdigest())
    parts = {"train": shuffled[:12], "val": shuffled[12:16], "test": shuffled[16:]}
    found = split_of(opened(tmp_path))
    assert found == {f"k/{name}": split for split, part in parts.items() for name in part}
    assert parts["train"] != names[:12], "sorted by name, whole neighbourhoods would end in one split"


def test_split_folders_are_not_split_again(tmp_path: Path, write_picture: PictureWriter) -> None:
    for split in ("train", "valid", "test"):
        write_picture(tmp_path / split / "k" / "a.png")
    source = opened(tmp_path)
    assert split_of(source) == {"train/k/a.png": "train", "valid/k/a.png": "val", "test/k/a.png": "test"}
    assert not any("60/20/20" in note for note in source.info.notes)


def test_unicode_file_names_are_read(
    tmp_path: Path, write_picture: PictureWriter, write_geotiff: GeoTiffWriter
) -> None:
    first = write_picture(tmp_path / "Wälder" / "Ärger ß 1.png", seed=1)
    second = write_picture(tmp_path / "水 域" / "図.png", seed=2)
    write_geotiff(tmp_path / "水 域" / "衛星.tif", np.moveaxis(first, 2, 0))
    source = opened(tmp_path)
    assert source.sample_ids == ["Wälder/Ärger ß 1.png", "水 域/図.png", "水 域/衛星.tif"]
    for index, pixels in enumerate([first, second, first]):
        np.testing.assert_array_equal(read_all(source, index), np.moveaxis(pixels, 2, 0))


def test_threads_read_the_same_as_one_after_the_other(
    tmp_path: Path, write_picture: PictureWriter, write_geotiff: GeoTiffWriter
) -> None:
    for i in range(12):
        pixels = write_picture(tmp_path / "k" / f"p{i}.png", seed=i, size=16)
        write_geotiff(tmp_path / "k" / f"t{i}.tif", np.moveaxis(pixels, 2, 0))
    source = opened(tmp_path)
    alone = [read_all(source, i) for i in range(24)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: read_all(source, i % 24), range(96)))
    for i, image in enumerate(together):
        np.testing.assert_array_equal(image, alone[i % 24])


# revision


def test_revision_is_the_same_for_the_same_content(tmp_path: Path, write_picture: PictureWriter) -> None:
    for i in range(5):
        write_picture(tmp_path / "k" / f"{i}.png", seed=i)
    assert opened(tmp_path).revision(range(5)) == opened(tmp_path).revision(range(5))


def test_revision_tells_a_changed_label_and_a_changed_split_apart_and_leaves_pixels_to_the_content_hash(
    tmp_path: Path, write_picture: PictureWriter
) -> None:
    for name in "ab":
        write_picture(tmp_path / f"{name}.png")
    table = tmp_path / "t.csv"

    def revision(text: str) -> dict[str, Any]:
        table.write_text("path,label,split\n" + text)
        return dict(opened(table).revision([0, 1]))

    before = revision("a.png,x,train\nb.png,y,test\n")
    relabelled = revision("a.png,y,train\nb.png,x,test\n")
    resplit = revision("a.png,x,train\nb.png,y,val\n")
    write_picture(tmp_path / "b.png", size=9)
    refilled = revision("a.png,x,train\nb.png,y,test\n")
    assert {k for k in before if relabelled[k] != before[k]} == {"labels"}
    assert {k for k in before if resplit[k] != before[k]} == {"splits"}
    assert refilled == before, "pixels are content, which is told row by row"


# by name


def test_dataset_is_opened_by_kind_and_path(tmp_path: Path, write_picture: PictureWriter) -> None:
    write_picture(tmp_path / "k" / "a.png")
    assert open_dataset(f"folder:{tmp_path}").sample_ids == ["k/a.png"]


def test_dataset_is_opened_by_name_under_the_data_root(tmp_path: Path, write_picture: PictureWriter) -> None:
    write_picture(tmp_path / "chips" / "k" / "a.png")
    assert open_dataset("chips", tmp_path).info.name == "chips"


def test_unknown_dataset_name_is_refused_with_the_near_one(tmp_path: Path, write_picture: PictureWriter) -> None:
    write_picture(tmp_path / "chips" / "k" / "a.png")
    with pytest.raises(UnknownNameError, match=r"dataset 'chip' is not known; did you mean 'chips'\?.*holds chips\."):
        open_dataset("chip", tmp_path)


def test_unknown_kind_of_dataset_is_refused_with_the_near_one() -> None:
    with pytest.raises(UnknownNameError, match=r"dataset kind 'folders' is not known; did you mean 'folder'\?"):
        open_dataset("folders:x")


def test_name_without_a_data_root_is_refused_saying_how_to_give_one() -> None:
    with pytest.raises(DatasetError, match=re.escape("add --data-root DIR")):
        open_dataset("chips")


def test_reading_leaves_the_files_alone(tmp_path: Path, write_geotiff: GeoTiffWriter) -> None:
    write_geotiff(
        tmp_path / "k" / "a.tif", np.ones((3, 4, 4), np.uint16), crs="EPSG:4326", transform=from_origin(1, 2, 1, 1)
    )
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    source = opened(tmp_path)
    source.read(0, RGB)
    source.revision([0])
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    with rasterio.open(tmp_path / "k" / "a.tif") as file:
        assert file.read().sum() == 48
