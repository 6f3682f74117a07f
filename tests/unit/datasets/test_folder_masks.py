"""Images with masks: what is read, held against Pillow, rasterio and numpy; what is refused, by name."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from embedcache.contents import ContentIndex
from embedcache.datasets._spec import OpenOptions
from embedcache.datasets.folder import FolderSource
from embedcache.errors import DatasetError, SampleError
from embedcache_stores import open_place

PictureWriter = Callable[..., npt.NDArray[Any]]
GeoTiffWriter = Callable[..., None]
Pixels = npt.NDArray[Any]
RGB = ("RED", "GREEN", "BLUE")
COLOURS = {"Building": "#3C1098", "Road": "#6EC1E4", "Water": "#E2A929"}
PALETTE = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in COLOURS.values()], np.uint8)
TABLE = "class,value\n" + "".join(f"{name},{colour}\n" for name, colour in COLOURS.items())


def opened(path: Path, **options: Any) -> FolderSource:
    return FolderSource(path, OpenOptions(**options))


def mask_of(source: FolderSource, index: int = 0) -> Pixels:
    target = source.read(index, RGB).target
    assert isinstance(target, np.ndarray)
    return target


def save(path: Path, pixels: Pixels, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels) if mode != "P" else Image.fromarray(pixels).convert("P")
    if mode == "P":
        picture = Image.fromarray(pixels, "P")
        picture.putpalette(PALETTE.tobytes())
    picture.save(path)


def random_mask(seed: int = 0, classes: int = 3, shape: tuple[int, int] = (8, 8)) -> Pixels:
    mask = np.random.default_rng(seed).integers(0, classes, shape).astype(np.uint8)
    mask.flat[:classes] = range(classes)
    return mask


def save_tif(path: Path, mask: Pixels, nodata: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = mask[None] if mask.ndim == 2 else mask
    facts = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(path, "w", driver="GTiff", nodata=nodata, **facts) as file:
        file.write(bands)


def write_png(path: Path, pixels: Pixels, depth: int) -> None:
    """Write a grey PNG of 1, 2 or 4 bits by hand, after the standard: Pillow cannot."""
    bits = np.unpackbits(pixels[..., None].astype(np.uint8), axis=2)[..., -depth:].reshape(len(pixels), -1)
    lines = b"".join(b"\0" + row.tobytes() for row in np.packbits(bits, axis=1))
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], depth, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    )


@pytest.fixture
def one(tmp_path: Path, write_picture: PictureWriter) -> Path:
    """A folder with one image of 8 x 8 px, to be given masks/a.*."""
    write_picture(tmp_path / "images" / "a.png")
    (tmp_path / "masks").mkdir()
    return tmp_path


# kinds of masks


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [("png", "uint8"), ("png", "uint16"), ("tif", "uint8"), ("tif", "uint16"), ("tif", "int16"), ("tif", "int32")],
)
def test_numbers_are_read_pixel_for_pixel(one: Path, suffix: str, dtype: str) -> None:
    mask = random_mask().astype(dtype)
    if suffix == "tif":
        save_tif(one / "masks" / "a.tif", mask)
    else:
        save(one / "masks" / "a.png", mask)
    source = opened(one)
    assert (source.info.task, source.info.ignore_index) == ("segmentation", -1)
    assert source.info.class_names == ("class 0", "class 1", "class 2")
    np.testing.assert_array_equal(mask_of(source), mask)
    assert any("found by reading all masks" in note for note in source.info.notes)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_greys_of_few_bits_are_the_numbers_that_they_were_written_as(one: Path, depth: int) -> None:
    mask = random_mask(classes=2**depth)
    write_png(one / "masks" / "a.png", mask, depth)
    np.testing.assert_array_equal(mask_of(opened(one)), mask)


def test_palette_without_colours_in_a_table_is_its_indices(one: Path) -> None:
    mask = random_mask()
    save(one / "masks" / "a.png", mask, "P")
    np.testing.assert_array_equal(mask_of(opened(one)), mask)
    (one / "classes.csv").write_text("class,value\nx,2\ny,0\nz,1\n")
    assert opened(one).info.class_names == ("y", "z", "x"), "classes are counted as their numbers are"
    np.testing.assert_array_equal(mask_of(opened(one)), mask)


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "P", "tif"])
def test_colours_become_the_classes_of_their_lines(one: Path, kind: str) -> None:
    mask = random_mask()
    colours = PALETTE[mask]
    if kind == "tif":
        save_tif(one / "masks" / "a.tif", np.moveaxis(colours, 2, 0))
    elif kind == "P":
        save(one / "masks" / "a.png", mask, "P")
    else:
        save(one / "masks" / "a.png", colours if kind == "RGB" else np.dstack([colours, np.full((8, 8), 255, "u1")]))
    (one / "classes.csv").write_text(TABLE)
    source = opened(one)
    assert source.info.class_names == tuple(COLOURS)
    np.testing.assert_array_equal(mask_of(source), mask)


def test_numbers_with_gaps_are_closed_up_and_ignored_ones_have_no_label(one: Path) -> None:
    mask = np.array([0, 255, 7, 40], np.uint8)[random_mask(classes=4)]
    save(one / "masks" / "a.png", mask)
    (one / "classes.csv").write_text("class,value,ignore\nwater,7,\nland,0,no\nrock,40,\nno data,255,ignore\n")
    source = opened(one)
    assert source.info.class_names == ("land", "water", "rock")
    expected = np.select([mask == 0, mask == 7, mask == 40], [0, 1, 2], -1)
    np.testing.assert_array_equal(mask_of(source), expected)


def test_colours_may_be_ignored_under_one_name_or_none(one: Path) -> None:
    mask = random_mask()
    save(one / "masks" / "a.png", PALETTE[mask])
    (one / "classes.csv").write_text("class,value,ignore\n,#3c1098,ignore\n,#6EC1E4,yes\nWater,#E2A929,\n")
    np.testing.assert_array_equal(mask_of(opened(one)), np.where(mask == 2, 0, -1))


def test_negative_numbers_and_nodata_have_no_label(one: Path) -> None:
    mask = random_mask().astype(np.int16)
    mask[0, 3:6] = (-1, -9999, 30)
    save_tif(one / "masks" / "a.tif", mask, nodata=30)
    source = opened(one)
    assert source.info.num_classes == 3
    np.testing.assert_array_equal(mask_of(source), np.where((mask < 0) | (mask == 30), -1, mask))


def test_nodata_among_the_classes_has_no_label_unless_the_table_names_it(one: Path) -> None:
    mask = random_mask().astype(np.int16)
    save_tif(one / "masks" / "a.tif", mask, nodata=0)
    np.testing.assert_array_equal(mask_of(opened(one)), np.where(mask == 0, -1, mask))
    (one / "classes.csv").write_text("class,value\na,0\nb,1\nc,2\n")
    np.testing.assert_array_equal(mask_of(opened(one)), mask)


def test_sizes_may_differ_between_samples_and_not_within_one(tmp_path: Path, write_picture: PictureWriter) -> None:
    for name, size in (("a", 8), ("b", 12)):
        write_picture(tmp_path / "images" / f"{name}.png", size=size)
        save(tmp_path / "masks" / f"{name}.png", random_mask(shape=(size, size)))
    source = opened(tmp_path)
    assert [mask_of(source, i).shape for i in (0, 1)] == [(8, 8), (12, 12)]
    save(tmp_path / "masks" / "b.png", random_mask(shape=(12, 9)))
    with pytest.raises(SampleError, match=r"^sample 'images/b\.png' .*mask '.*b\.png' is 9 x 12 px, its image 12 x 12"):
        source.read(1, RGB)


# what is refused


def test_unknown_colour_is_refused_with_its_file_and_how_often(one: Path, write_picture: PictureWriter) -> None:
    write_picture(one / "images" / "b.png")
    colours = PALETTE[random_mask()]
    save(one / "masks" / "a.png", colours)
    colours[5, 1:4] = 0
    colours[6, 1] = (0, 0, 1)
    save(one / "masks" / "b.png", colours)
    (one / "classes.csv").write_text(TABLE)
    source = opened(one)
    mask_of(source, 0)
    sentence = (
        r"^sample 'images/b\.png' .*b\.png' holds #000000 in 3 px and 1 more values, which 'classes\.csv' does not"
    )
    with pytest.raises(SampleError, match=sentence):
        source.read(1, RGB)


def test_unknown_number_is_refused_with_its_file_and_how_often(one: Path) -> None:
    save(one / "masks" / "a.png", random_mask(classes=4))
    (one / "classes.csv").write_text("class,value\na,0\nb,1\nc,2\n")
    count = int((random_mask(classes=4) == 3).sum())
    with pytest.raises(SampleError, match=rf"a\.png' holds 3 in {count} px, which 'classes\.csv' does not name"):
        opened(one)


def test_colours_without_a_table_are_refused_showing_them(one: Path) -> None:
    save(one / "masks" / "a.png", PALETTE[random_mask()])
    with pytest.raises(
        DatasetError, match=r"a\.png' holds colours \(#3C1098, #6EC1E4, #E2A929\), .*write '.*classes\.csv' with"
    ):
        opened(one)


def test_255_without_a_table_is_refused_for_it_may_be_a_class_or_none(one: Path) -> None:
    save(one / "masks" / "a.png", np.where(random_mask(classes=2) == 1, 255, 0).astype(np.uint8))
    with pytest.raises(
        DatasetError, match=r"hold 0, 255, and 255 \(in '.*a\.png'\) may be a class .*'none,255,ignore'"
    ):
        opened(one)


def test_masks_without_any_label_are_refused(one: Path) -> None:
    save_tif(one / "masks" / "a.tif", np.full((8, 8), -1, np.int16))
    with pytest.raises(DatasetError, match="has a labelled pixel"):
        opened(one)


def test_table_and_masks_of_different_kinds_are_refused(one: Path) -> None:
    save(one / "masks" / "a.png", random_mask())
    (one / "classes.csv").write_text(TABLE)
    with pytest.raises(SampleError, match=r"a\.png' holds numbers, and 'classes\.csv' names colours"):
        opened(one)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda p: Image.fromarray(random_mask()).save(p, "JPEG"), "is a JPEG, which blurs labels"),
        (lambda p: Image.fromarray(np.zeros((8, 8, 2), np.uint8), "LA").save(p), "holds pixels of kind LA"),
        (lambda p: Image.fromarray(np.zeros((8, 8, 4), np.uint8)).save(p), "is partly transparent"),
        (lambda p: p.write_text("<html>404</html>"), "cannot be read"),
        (lambda p: p.write_bytes(b""), "cannot be read"),
        (lambda p: p.symlink_to(p.parent / "nowhere"), "does not exist"),
        (lambda p: write_png(p, np.zeros((9, 9)), 8), "9 x 9 px, its image 8 x 8"),
    ],
    ids=["jpeg", "grey and alpha", "transparent", "text", "empty", "dead link", "size"],
)
def test_bad_mask_is_its_samples_fault_and_does_not_lock_the_others(
    one: Path, write_picture: PictureWriter, write: Callable[[Path], object], sentence: str
) -> None:
    write_picture(one / "images" / "b.png")
    save(one / "masks" / "b.png", random_mask())
    write(one / "masks" / "a.png")
    source = opened(one)
    with pytest.raises(SampleError, match=sentence) as caught:
        source.read(0, RGB)
    assert caught.value.sample_id == "images/a.png"
    np.testing.assert_array_equal(mask_of(source, 1), random_mask())


@pytest.mark.parametrize(
    ("bands", "sentence"),
    [
        (np.zeros((1, 8, 8), np.float32), "has 1 bands of float32"),
        (np.zeros((2, 8, 8), np.uint8), "has 2 bands of uint8"),
        (np.zeros((3, 8, 8), np.uint16), "has 3 bands of uint16"),
    ],
)
def test_geotiff_that_is_no_mask_is_refused_with_what_it_is(one: Path, bands: Pixels, sentence: str) -> None:
    save_tif(one / "masks" / "a.tif", bands)
    with pytest.raises(SampleError, match=sentence):
        opened(one)


def test_truncated_masks_are_refused_by_name(one: Path, write_picture: PictureWriter) -> None:
    for suffix in ("png", "tif"):
        write_picture(one / "images" / f"{suffix}.png", size=32)
        mask = random_mask(shape=(32, 32))
        save(one / "masks" / "png.png", mask) if suffix == "png" else save_tif(one / "masks" / "tif.tif", mask)
    save(one / "masks" / "a.png", random_mask())
    source = opened(one)
    for bad in (one / "masks" / "png.png", one / "masks" / "tif.tif"):
        whole = bad.read_bytes()
        for length in (0, 4, 30, len(whole) // 2, len(whole) - 30):
            bad.write_bytes(whole[:length])
            with pytest.raises(SampleError, match=rf"^sample 'images/{bad.stem}\.png'"):
                mask_of(source, source.sample_ids.index(f"images/{bad.stem}.png"))


def test_mask_that_says_it_is_gigantic_is_refused_before_it_is_decoded(one: Path, write_picture: PictureWriter) -> None:
    write_picture(one / "images" / "b.png")
    save(one / "masks" / "b.png", random_mask())
    facts = {"count": 1, "height": 200_000, "width": 200_000, "dtype": "uint8"}
    with rasterio.open(one / "masks" / "a.tif", "w", driver="GTiff", sparse_ok=True, tiled=True, **facts):
        pass
    source = opened(one)
    with pytest.raises(SampleError, match="200000 x 200000 px"):
        source.read(0, RGB)


# the rest of a dataset


def test_csv_gives_masks_splits_places_and_times(
    tmp_path: Path, write_picture: PictureWriter, write_geotiff: GeoTiffWriter
) -> None:
    pixels = write_picture(tmp_path / "x" / "a.png")
    save(tmp_path / "y" / "m1.png", random_mask(1))
    transform = from_origin(10, 50, 0.1, 0.1)
    write_geotiff(tmp_path / "x" / "b.tif", np.moveaxis(pixels, 2, 0), crs="EPSG:4326", transform=transform)
    save_tif(tmp_path / "y" / "m2.tif", random_mask(2))
    (tmp_path / "t.csv").write_text(
        "path,mask,split,lat,lon,time\nx/b.tif,y/m2.tif,test,,,1970-01-02\nx/a.png,y/m1.png,train,1,2,1970-01-03\n"
    )
    (tmp_path / "classes.csv").write_text("class,value\na,0\nb,1\nc,2\n")
    source = opened(tmp_path / "t.csv")
    assert list(source.splits) == ["test", "train"]
    assert source.info.class_names == ("a", "b", "c")
    first, second = source.read(0, RGB), source.read(1, RGB)
    np.testing.assert_array_equal(first.target, random_mask(2))
    np.testing.assert_array_equal(second.target, random_mask(1))
    assert (first.lat, first.lon, first.time) == (pytest.approx(49.6), pytest.approx(10.4), 86400.0)
    assert (second.lat, second.lon, second.time) == (1.0, 2.0, 2 * 86400.0)
    assert list(source.files(0)) == [tmp_path / "x/b.tif", tmp_path / "y/m2.tif"]


def test_images_without_splits_are_split_by_the_hash_of_their_path(
    tmp_path: Path, write_picture: PictureWriter
) -> None:
    names = [f"images/{i}.png" for i in range(20)]
    for name in names:
        write_picture(tmp_path / name, size=4)
        save(tmp_path / name.replace("images", "masks"), random_mask(shape=(4, 4)))
    source = opened(tmp_path)
    ordered = sorted(names, key=lambda n: hashlib.sha256(n.encode()).digest())
    expected = dict.fromkeys(ordered[:12], "train") | dict.fromkeys(ordered[12:16], "val")
    assert dict(zip(source.sample_ids, source.splits, strict=True)) == expected | dict.fromkeys(ordered[16:], "test")
    assert any(note.endswith("60/20/20 by a hash of their path") for note in source.info.notes)


def test_changed_mask_changes_the_content_and_a_changed_table_the_revision(one: Path) -> None:
    def identity() -> tuple[str, object]:
        source = opened(one)
        return ContentIndex(open_place(one / "cache")).hash_of(source.files(0)), source.revision([0])["labels"]

    save(one / "masks" / "a.png", random_mask(0))
    before = identity()
    save(one / "masks" / "a.png", random_mask(1))
    repainted = identity()
    assert repainted[0] != before[0]
    assert repainted[1] == before[1], "which pixels are which class is content: their rows alone are made anew"
    save(one / "masks" / "a.png", random_mask(0))
    assert identity() == before
    digests = {before[1]}
    for table in ("a,0,\nb,1,\nc,2,", "a,0,\nb,1,\nd,2,", "a,0,\nb,1,\nc,2,ignore", "a,0,\nb,1,\nc,2,\nd,3,"):
        (one / "classes.csv").write_text(f"class,value,ignore\n{table}\n")
        after = identity()
        assert after[0] == before[0]
        digests.add(after[1])
    assert len(digests) == 5


def test_missing_masks_are_counted_before_anything_is_encoded(tmp_path: Path, write_picture: PictureWriter) -> None:
    for name in "ab":
        write_picture(tmp_path / f"{name}.png")
    save(tmp_path / "m.png", random_mask())
    (tmp_path / "t.csv").write_text("path,mask\na.png,m.png\nb.png,gone.png\n")
    source = opened(tmp_path / "t.csv")
    with pytest.raises(DatasetError, match=r"^1 of 2 masks do not exist, the first is '.*gone\.png'"):
        source.revision([0, 1])
    with pytest.raises(SampleError, match=r"^sample 'b\.png' .*gone\.png' does not exist"):
        source.read(1, RGB)
