"""Which images, labels and splits a folder or a CSV names."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache.datasets._folder_tables import Table, natural, rows_of_folders
from embedcache.datasets._tables import rows_of_table
from embedcache.errors import DatasetError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def table_of(tmp_path: Path, text: str, encoding: str = "utf-8") -> Table:
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode(encoding))
    return rows_of_table(path)


def test_class_folders_become_classes_and_their_images_samples(tmp_path: Path) -> None:
    table = rows_of_folders(touch(tmp_path, "water/a.png", "forest/b.jpg", "forest/c.TIF", "forest/notes.txt"))
    assert table.class_names == ("forest", "water")
    assert [(r.sample_id, r.target, r.split) for r in table.rows] == [
        ("forest/b.jpg", 0, None),
        ("forest/c.TIF", 0, None),
        ("water/a.png", 1, None),
    ]
    assert all(r.path == tmp_path / r.sample_id for r in table.rows)
    assert not table.multilabel
    assert table.notes == ()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".tif", ".tiff", ".JPG", ".Png"])
def test_every_image_suffix_is_found_in_any_case(tmp_path: Path, suffix: str) -> None:
    assert len(rows_of_folders(touch(tmp_path, f"k/a{suffix}")).rows) == 1


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "VAL"])
def test_split_folders_give_splits_and_share_their_classes(tmp_path: Path, val: str) -> None:
    table = rows_of_folders(touch(tmp_path, "train/b/1.png", "train/a/2.png", f"{val}/b/3.png", "test/c/4.png"))
    assert table.class_names == ("a", "b", "c")
    assert {r.sample_id: (r.split, r.target) for r in table.rows} == {
        "train/a/2.png": ("train", 0),
        "train/b/1.png": ("train", 1),
        f"{val}/b/3.png": ("val", 1),
        "test/c/4.png": ("test", 2),
    }


def test_class_that_is_called_test_beside_other_classes_is_a_class(tmp_path: Path) -> None:
    table = rows_of_folders(touch(tmp_path, "test/a.png", "control/b.png"))
    assert table.class_names == ("control", "test")
    assert {r.split for r in table.rows} == {None}


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    table = rows_of_folders(touch(tmp_path, ".ipynb_checkpoints/a.png", "k/b.png"))
    assert table.class_names == ("k",)


def test_images_and_classes_are_sorted_as_people_count(tmp_path: Path) -> None:
    names = [f"{c}/img_{i}.png" for c in ("c10", "c2", "c1") for i in (10, 9, 1, 2)]
    table = rows_of_folders(touch(tmp_path, *names))
    assert table.class_names == ("c1", "c2", "c10")
    assert [r.sample_id for r in table.rows] == [f"{c}/img_{i}.png" for c in ("c1", "c2", "c10") for i in (1, 2, 9, 10)]


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=8, unique=True))
def test_natural_order_of_numbered_names_is_that_of_the_numbers(numbers: list[int]) -> None:
    names = [f"tile_{n}_b.tif" for n in numbers]
    assert sorted(names, key=natural) == [f"tile_{n}_b.tif" for n in sorted(numbers)]


def test_unicode_names_are_kept(tmp_path: Path) -> None:
    table = rows_of_folders(touch(tmp_path, "Wälder/Bäume 1.png", "水/図 2.jpg"))
    assert table.class_names == ("Wälder", "水")
    assert [r.sample_id for r in table.rows] == ["Wälder/Bäume 1.png", "水/図 2.jpg"]


def test_empty_class_folder_is_refused_naming_it(tmp_path: Path) -> None:
    touch(tmp_path, "k/a.png", "leer/readme.txt")
    with pytest.raises(DatasetError, match=r"class folder '.*leer' holds no image .*\.jpeg.*; fill it or remove it"):
        rows_of_folders(tmp_path)


def test_folder_without_class_folders_is_refused_saying_what_is_wanted(tmp_path: Path) -> None:
    touch(tmp_path, "a.png")
    with pytest.raises(DatasetError, match=r"holds no class folders; .* or a CSV of path,label,split\.$"):
        rows_of_folders(tmp_path)


def test_folder_without_class_folders_points_to_the_csv_that_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "labels.csv")
    with pytest.raises(DatasetError, match=r"There is 'labels\.csv': pass folder:.*labels\.csv to use it"):
        rows_of_folders(tmp_path)


def test_split_folder_without_classes_is_refused_naming_it(tmp_path: Path) -> None:
    touch(tmp_path, "train/k/a.png", "test/b.png")
    with pytest.raises(DatasetError, match=r"test' holds no class folders"):
        rows_of_folders(tmp_path)


def test_csv_beside_class_folders_is_not_used_and_that_is_noted(tmp_path: Path) -> None:
    table = rows_of_folders(touch(tmp_path, "k/a.png", "split.csv"))
    assert len(table.notes) == 1
    assert table.notes[0].startswith("'split.csv' is not used; pass folder:")


def test_csv_gives_label_class_split_place_and_time(tmp_path: Path) -> None:
    table = table_of(
        tmp_path,
        "path,class,label,split,lat,lon,time,remark\n"
        "a/1.png,water,7,train,45.5,-9.25,2020-06-30,x\n"
        "b 2.tif,forest,3,Validation,-10,20,2021-01-01T12:00:00+02:00,y\n"
        "c.jpg,water,7,TEST,,,,z\n",
    )
    assert table.class_names == ("forest", "water")
    assert [(r.sample_id, r.target, r.split, r.lat, r.lon) for r in table.rows] == [
        ("a/1.png", 1, "train", 45.5, -9.25),
        ("b 2.tif", 0, "val", -10.0, 20.0),
        ("c.jpg", 1, "test", None, None),
    ]
    assert [r.time for r in table.rows] == [
        datetime.datetime(2020, 6, 30, tzinfo=datetime.UTC).timestamp(),
        datetime.datetime(2021, 1, 1, 10, tzinfo=datetime.UTC).timestamp(),
        None,
    ]
    assert table.rows[0].path == tmp_path / "a/1.png"


def test_csv_labels_are_numbered_as_people_count(tmp_path: Path) -> None:
    table = table_of(tmp_path, "path,label\na,10\nb,9\nc,1\n")
    assert table.class_names == ("1", "9", "10")
    assert [r.target for r in table.rows] == [2, 1, 0]


def test_csv_order_of_rows_is_kept(tmp_path: Path) -> None:
    assert [r.sample_id for r in table_of(tmp_path, "path,label\nz,0\na,1\nm,0\n").rows] == ["z", "a", "m"]


def test_csv_written_by_a_spreadsheet_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    assert table_of(tmp_path, "path,label\r\nä.png,Grün\r\n", "utf-8-sig").class_names == ("Grün",)


def test_one_image_with_two_labels_makes_the_whole_table_multilabel(tmp_path: Path) -> None:
    table = table_of(tmp_path, "path,label\na,water | forest\nb,town\nc,forest;town\n")
    assert table.multilabel
    assert table.class_names == ("forest", "town", "water")
    targets = np.array([r.target for r in table.rows])
    assert targets.dtype == np.uint8
    assert targets.tolist() == [[1, 0, 1], [0, 1, 0], [1, 1, 0]]


def test_label_written_twice_for_one_image_counts_once(tmp_path: Path) -> None:
    assert table_of(tmp_path, "path,label\na,x|x\nb,y\n").rows[0].target.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("header", "missing"), [("path,name", "label"), ("file,label", "path"), ("file,name", "path nor label")]
)
def test_csv_without_its_columns_is_refused_naming_them_and_what_it_has(
    tmp_path: Path, header: str, missing: str
) -> None:
    with pytest.raises(
        DatasetError, match=rf"labels\.csv' has no column {missing}; it has {header.replace(',', ', ')}\."
    ):
        table_of(tmp_path, f"{header}\na,b\n")


def test_csv_that_is_empty_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="has no column path nor label; it has nothing"):
        table_of(tmp_path, "")


def test_csv_that_names_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"labels\.csv' names no image"):
        table_of(tmp_path, "path,label,split\n")


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ("a,0,train,,\nb,1,holdout,,\n", "line 3: split 'holdout' is not train, val or test"),
        ("a,0,,north,\n", "line 2: lat 'north' is not a number"),
        ("a,0,,,\nb,0,,,\nc,0,,,30/06/2020\n", "line 4: time '30/06/2020' is not a date such as 2020-06-30"),
        ("a,0,,,2020-13-01\n", "line 2: time '2020-13-01' is not a date"),
        ("a,0,,,\nb,,,,\n", "line 3: column label is empty for 'b'"),
        ("a,x|,,,\n", "line 2: column label is empty for 'a'"),
    ],
)
def test_wrong_value_is_refused_with_its_line_and_column(tmp_path: Path, rows: str, sentence: str) -> None:
    with pytest.raises(DatasetError, match=rf"labels\.csv' {sentence}"):
        table_of(tmp_path, "path,label,split,lat,time\n" + rows)
