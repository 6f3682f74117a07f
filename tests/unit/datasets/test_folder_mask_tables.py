"""Which image has which mask, and what ``classes.csv`` says."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedcache.datasets._class_table import ClassTable, read_class_table
from embedcache.datasets._mask_folders import rows_of_mask_folders
from embedcache.datasets._tables import rows_of_table
from embedcache.errors import DatasetError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def pairs(root: Path) -> dict[str, tuple[str, str | None]]:
    table = rows_of_mask_folders(root)
    assert table is not None
    assert table.segmentation
    assert all(row.path == root / row.sample_id and row.mask is not None for row in table.rows)
    return {row.sample_id: (row.mask.relative_to(root).as_posix(), row.split) for row in table.rows if row.mask}


def classes(tmp_path: Path, text: str) -> ClassTable:
    (tmp_path / "classes.csv").write_text(text)
    return read_class_table(tmp_path / "classes.csv")


def test_masks_are_matched_by_name_whatever_the_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "images/b10.jpg", "images/b9.TIF", "masks/b10.png", "masks/b9.tiff", "masks/readme.txt")
    touch(tmp_path, "masks/._b9.png", "classes.csv")
    assert pairs(tmp_path) == {"images/b9.TIF": ("masks/b9.tiff", None), "images/b10.jpg": ("masks/b10.png", None)}
    assert list(pairs(tmp_path)) == ["images/b9.TIF", "images/b10.jpg"]


def test_splits_are_taken_from_folders_outside_or_inside(tmp_path: Path) -> None:
    outside = touch(
        tmp_path / "o", *(f"{s}/{k}/a.png" for s in ("train", "Valid", "test") for k in ("images", "masks"))
    )
    assert {split for _, split in pairs(outside).values()} == {"train", "val", "test"}
    assert pairs(outside)["Valid/images/a.png"] == ("Valid/masks/a.png", "val")
    inside = touch(tmp_path / "i", *(f"{k}/{s}/a.png" for s in ("training", "test") for k in ("Images", "masks")))
    assert pairs(inside)["Images/training/a.png"] == ("masks/training/a.png", "train")


def test_other_folders_are_no_splits(tmp_path: Path) -> None:
    touch(tmp_path, *(f"Tile {t}/{k}/a.png" for t in (1, 2) for k in ("images", "masks")))
    touch(tmp_path, *(f"Tile 2/{k}/deep/er/b.png" for k in ("images", "masks")))
    assert pairs(tmp_path) == {
        "Tile 1/images/a.png": ("Tile 1/masks/a.png", None),
        "Tile 2/images/a.png": ("Tile 2/masks/a.png", None),
        "Tile 2/images/deep/er/b.png": ("Tile 2/masks/deep/er/b.png", None),
    }


def test_folders_of_which_only_some_are_splits_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, *(f"{t}/{k}/a.png" for t in ("train", "extra") for k in ("images", "masks")))
    with pytest.raises(DatasetError, match=r"called after splits, and 'extra' is not"):
        pairs(tmp_path)


def test_class_folders_are_no_masks(tmp_path: Path) -> None:
    assert rows_of_mask_folders(touch(tmp_path / "k", "forest/a.png", "water/b.png")) is None
    assert rows_of_mask_folders(touch(tmp_path / "i", "images/a.png", "other/b.png")) is None


def test_missing_and_extra_masks_are_named_in_one_sentence(tmp_path: Path) -> None:
    touch(tmp_path, *(f"images/{i}.png" for i in range(6)), "masks/0.png", "masks/7.png")
    sentence = (
        r"has 5 images without mask \(images/1\.png, images/2\.png, images/3\.png, \.\.\.\) and 1 masks without image "
        r"\(masks/7\.png\)"
    )
    with pytest.raises(DatasetError, match=sentence):
        pairs(tmp_path)


def test_split_without_masks_is_refused_naming_its_images(tmp_path: Path) -> None:
    touch(tmp_path, "train/images/a.png", "train/masks/a.png", "test/images/b.png")
    with pytest.raises(DatasetError, match=r"1 images without mask \(test/images/b\.png\)"):
        pairs(tmp_path)


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_two_files_of_one_name_are_refused(tmp_path: Path, folder: str) -> None:
    touch(tmp_path, "images/a.png", "masks/a.png", f"{folder}/a.tif")
    with pytest.raises(DatasetError, match=rf"{folder}' holds a\.png and a\.tif, which have one name"):
        pairs(tmp_path)


def test_empty_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DatasetError, match="images/ and masks/, and no image"):
        pairs(tmp_path)


def test_linked_folders_are_entered_where_they_are_the_pair_and_never_in_a_circle(tmp_path: Path) -> None:
    touch(tmp_path / "far", "pictures/a.png", "labels/a.png")
    root = tmp_path / "d"
    root.mkdir()
    (root / "images").symlink_to(tmp_path / "far" / "pictures")
    (root / "masks").symlink_to(tmp_path / "far" / "labels")
    (tmp_path / "far" / "pictures" / "again").symlink_to(tmp_path / "far" / "pictures")
    assert pairs(root) == {"images/a.png": ("masks/a.png", None)}


def test_csv_of_masks_is_relative_to_itself(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("mask,path\nm/1.png,i/a.png\n")
    table = rows_of_table(tmp_path / "t.csv")
    assert table.segmentation
    assert [(r.path, r.mask, r.target) for r in table.rows] == [(tmp_path / "i/a.png", tmp_path / "m/1.png", None)]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("path,mask,label\na,b,c\n", "has both label and mask"),
        ("image,mask\na,b\n", r"has no column path; .* needs path,label or path,mask"),
        ("path,mask\na,b\nc, \n", "line 3: column mask is empty for 'c'"),
        ("path,mask\n,b\n", "line 2: column path is empty"),
    ],
)
def test_wrong_csv_of_masks_is_refused_with_the_line(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(DatasetError, match=rf"t\.csv' {sentence}"):
        rows_of_table(tmp_path / "t.csv")


def test_class_table_is_read_as_it_is_documented(tmp_path: Path) -> None:
    numbers = classes(tmp_path, "class,value,ignore\nwater,1,\nland,0,\nno data,255,ignore\nlost,-7,IGNORE\n")
    assert (numbers.names, numbers.values, numbers.classes) == (("land", "water"), (-7, 0, 1, 255), (-1, 0, 1, -1))
    colours = classes(tmp_path, "value,class\n#FF0000,b\n#00ff00,a\n")
    assert (colours.names, colours.values, colours.classes) == (("b", "a"), (0x00FF00, 0xFF0000), (1, 0))
    assert (numbers.colours, colours.colours) == (False, True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name,index\na,0\n", "has no column class nor value; it has name, index"),
        ("class,value\n", "names no class"),
        ("class,value,ignore\na,0,ignore\n", "names no class"),
        ("class,value\na,0\nb,#00FF00\n", "line 3: value '#00FF00'; above there are values of another kind"),
        ("class,value\na,0\nb,\n", "line 3: value '' is neither a whole number nor a colour"),
        ("class,value\na,#00F\n", "line 2: value '#00F' is neither"),
        ("class,value\na,1.5\n", "line 2: value '1.5' is neither"),
        ("class,value\na,99999999999\n", "line 2: value '99999999999' is neither"),
        ("class,value\na,-1\n", "line 2: value -1 is negative, which always means no label"),
        ("class,value\n,1\n", "line 2: column class is empty"),
        ("class,value,ignore\na,1,maybe\n", "line 2: ignore 'maybe' is neither"),
        ("class,value\na,0\na,1\n", "names class 'a' twice"),
        ("class,value\na,#00ff00\nb,#00FF00\n", "names value '#00FF00' twice"),
    ],
)
def test_wrong_class_table_is_refused_with_the_line(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(DatasetError, match=rf"classes\.csv' {sentence}"):
        classes(tmp_path, text)
