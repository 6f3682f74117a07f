"""Tables of images: CSV and Parquet say the same, geometries give places, faults are named by row and column."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyproj import Transformer
from shapely.geometry import Point, box

from embedcache.datasets._folder_tables import Table
from embedcache.datasets._registry import name_in_cache, open_dataset
from embedcache.datasets._spec import OpenOptions
from embedcache.datasets._tables import rows_of_table
from embedcache.errors import DatasetError, EmbedcacheError

PictureWriter = Callable[..., npt.NDArray[Any]]


def facts(table: Table, root: Path) -> list[tuple[Any, ...]]:
    """Everything of a table's rows, comparable."""
    return [
        (
            r.sample_id,
            r.path.relative_to(root).as_posix(),
            r.target.tolist() if isinstance(r.target, np.ndarray) else r.target,
            r.mask,
            r.split,
            r.time,
            r.lat,
            r.lon,
        )
        for r in table.rows
    ]


def both(tmp_path: Path, columns: Mapping[str, list[Any]], roles: Mapping[str, str] | None = None) -> Table:
    """Write columns as CSV and as Parquet, see that they are read alike, and return what was read."""
    frame = pd.DataFrame(columns)
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    text, typed = (rows_of_table(tmp_path / name, roles) for name in ("t.csv", "t.parquet"))
    assert facts(text, tmp_path) == facts(typed, tmp_path)
    assert (text.class_names, text.multilabel) == (typed.class_names, typed.multilabel)
    return typed


def test_csv_and_parquet_of_the_same_table_are_the_same_dataset(tmp_path: Path) -> None:
    day = datetime.datetime(2020, 6, 30, 12, tzinfo=datetime.UTC)
    table = both(
        tmp_path,
        {
            "path": ["a/1.png", "a/2.png", "3.tif"],
            "label": [10, 9, 10],
            "class": ["water", "soil", "water"],
            "split": ["train", "Valid", None],
            "time": [day, day + datetime.timedelta(days=1), pd.NaT],
            "lat": [48.25, -1.0, None],
            "lon": [11.5, 179.0, None],
        },
    )
    assert table.class_names == ("soil", "water")
    assert facts(table, tmp_path) == [
        ("a/1.png", "a/1.png", 1, None, "train", day.timestamp(), 48.25, 11.5),
        ("a/2.png", "a/2.png", 0, None, "val", day.timestamp() + 86400, -1.0, 179.0),
        ("3.tif", "3.tif", 1, None, None, None, None, None),
    ]


def test_a_column_for_each_class_is_multi_label(tmp_path: Path) -> None:
    table = both(
        tmp_path,
        {"path": ["1.png", "2.png"], "label_forest": [True, False], "label_water": [1, 0], "label_no data": [0, 0]},
    )
    assert (table.class_names, table.multilabel) == (("forest", "water", "no data"), True)
    assert [r.target.tolist() for r in table.rows if isinstance(r.target, np.ndarray)] == [[1, 1, 0], [0, 0, 0]]


def test_get_dummies_of_pandas_is_read(tmp_path: Path) -> None:
    frame = pd.DataFrame({"path": ["1.png", "2.png", "3.png"], "label": ["b", "a", "b"]})
    pd.get_dummies(frame, columns=["label"]).to_csv(tmp_path / "t.csv", index=False)
    table = rows_of_table(tmp_path / "t.csv")
    assert table.class_names == ("a", "b")
    assert [r.target.tolist() for r in table.rows if isinstance(r.target, np.ndarray)] == [[0, 1], [1, 0], [0, 1]]


def test_lists_are_several_labels_and_may_be_empty(tmp_path: Path) -> None:
    columns = {"path": ["1.png", "2.png", "3.png"], "label": [["sea", "beach"], [], ["sea"]]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = rows_of_table(tmp_path / "t.parquet")
    assert (table.class_names, table.multilabel) == (("beach", "sea"), True)
    assert [r.target.tolist() for r in table.rows if isinstance(r.target, np.ndarray)] == [[1, 1], [0, 0], [0, 1]]
    single = pa.table({"path": ["1.png", "2.png"], "label": [["sea"], ["beach"]]})
    pq.write_table(single, tmp_path / "one.parquet")
    assert rows_of_table(tmp_path / "one.parquet").multilabel  # it is a list, however long


def test_columns_of_other_names_are_given_by_role(tmp_path: Path) -> None:
    columns = {"file": ["1.png", "2.png"], "path": ["no", "no"], "kind": ["b", "a"], "part": ["train", "test"]}
    table = both(tmp_path, columns, {"path": "file", "label": "kind", "split": "part"})
    assert [(r.sample_id, r.target, r.split) for r in table.rows] == [("1.png", 1, "train"), ("2.png", 0, "test")]
    flags = {"path": ["1.png", "2.png"], "sea": [1, 0], "beach": [0, 1], "other": [5, 6]}
    table = both(tmp_path, flags, {"label": "sea,beach"})
    assert table.class_names == ("sea", "beach")
    assert [r.target.tolist() for r in table.rows if isinstance(r.target, np.ndarray)] == [[1, 0], [0, 1]]


@pytest.mark.parametrize("crs", ["EPSG:32632", "EPSG:4326", "OGC:CRS84"])
def test_the_centre_of_a_geometry_is_where_the_image_lies(tmp_path: Path, crs: str) -> None:
    near = [(500_000.0, 5_400_000.0), (501_234.0, 5_398_000.0)] if "326" in crs else [(11.5, 48.25), (12.0, -3.0)]
    near = [(11.5, 48.25), (12.0, -3.0)] if crs != "EPSG:32632" else near
    shapes = [box(x - 0.5, y - 0.25, x + 0.5, y + 0.25) for x, y in near]
    frame = geopandas.GeoDataFrame(
        {"path": ["1.png", "2.png", "3.png"], "label": ["a", "b", "a"]}, geometry=[*shapes, None], crs=crs
    )
    frame.to_parquet(tmp_path / "t.parquet")
    table = rows_of_table(tmp_path / "t.parquet")
    to_degrees = Transformer.from_crs(crs, "EPSG:4326", always_xy=True)
    for row, (x, y) in zip(table.rows, near, strict=False):
        lon, lat = to_degrees.transform(x, y)
        assert (row.lat, row.lon) == pytest.approx((lat, lon), abs=1e-9)
    assert (table.rows[2].lat, table.rows[2].lon) == (None, None)


def test_geometries_without_a_reference_system_are_no_places_and_it_is_said(tmp_path: Path) -> None:
    frame = geopandas.GeoDataFrame({"path": ["1.png"], "label": ["a"]}, geometry=[Point(1, 2)])
    frame.to_parquet(tmp_path / "t.parquet")
    table = rows_of_table(tmp_path / "t.parquet")
    assert table.rows[0].lat is None
    assert "no coordinate reference system" in table.notes[0]


def test_wkt_in_a_csv_is_longitude_first_and_columns_win(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        'path,label,geometry,lat,lon\n1.png,a,POINT (11.5 48.25),,\n2.png,a,"POLYGON ((0 0, 4 0, 4 2, 0 2, 0 0))",,\n'
        "3.png,a,POINT (11.5 48.25),1,2\n4.png,a,,,\n"
    )
    rows = rows_of_table(tmp_path / "t.csv").rows
    assert [(r.lat, r.lon) for r in rows] == [(48.25, 11.5), (1.0, 2.0), (1.0, 2.0), (None, None)]


def write_parquet(file: Path, /, **columns: list[Any]) -> None:
    pq.write_table(pa.table(columns), file)


@pytest.mark.parametrize(
    ("columns", "fragments"),
    [
        ({"label": ["a", "b"]}, ("has no column path", "--dataset-arg path=NAME")),
        ({"path": ["1.png", "2.png"]}, ("has no column label",)),
        ({"path": ["1.png", None], "label": ["a", "b"]}, ("row 2", "column path is empty")),
        ({"path": ["1.png", "2.png"], "label": ["a", None]}, ("row 2", "column label is empty", "2.png")),
        ({"path": ["1.png", "2.png"], "label": ["a", "b"], "lat": [0.0, 91.0]}, ("row 2", "lat 91", "-90 and 90")),
        ({"path": ["1.png", "2.png"], "label": ["a", "b"], "split": ["train", "x"]}, ("row 2", "split 'x'")),
        ({"path": ["1.png", "2.png"], "label": ["a", "b"], "time": ["2020-06-30", "May"]}, ("row 2", "time 'May'")),
        ({"path": ["1.png", "2.png"], "label_id": [1, 7]}, ("row 2", "label_id '7'", "neither 0 nor 1")),
        ({"path": ["1.png", "2.png"], "mask": ["m.png", ""]}, ("row 2", "column mask is empty", "2.png")),
        ({"path": [["1.png"], ["2.png"]], "label": ["a", "b"]}, ("row 1", "column path holds a list")),
        ({"path": ["1.png"], "label": ["a"], "mask": ["m.png"]}, ("both label and mask",)),
        ({"path": ["1.png"], "label": ["a"], "geometry": ["somewhere"]}, ("row 1", "geometry 'somewhere'", "WKT")),
        ({"path": ["1.png"], "label": ["a"], "geometry": ["POINT (500000 5400000)"]}, ("row 1", "geometry", "Earth")),
    ],
)
def test_what_is_wrong_is_named_by_row_and_column(
    tmp_path: Path, columns: dict[str, list[Any]], fragments: tuple[str, ...]
) -> None:
    write_parquet(tmp_path / "t.parquet", **columns)
    with pytest.raises(DatasetError) as error:
        rows_of_table(tmp_path / "t.parquet")
    for fragment in ("t.parquet", *fragments):
        assert fragment in str(error.value)


def test_a_geometry_off_the_earth_is_named(tmp_path: Path) -> None:
    frame = geopandas.GeoDataFrame(
        {"path": ["1.png", "2.png"], "label": ["a", "b"]}, geometry=[Point(1, 2), Point(500_000, 5e6)], crs=4326
    )
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(DatasetError, match="row 2: column geometry lies nowhere on Earth"):
        rows_of_table(tmp_path / "t.parquet")


def test_roles_that_cannot_be_are_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet", path=["1.png"], label=["a"])
    with pytest.raises(EmbedcacheError, match=r"no column 'file'; it has path, label"):
        rows_of_table(tmp_path / "t.parquet", {"path": "file"})
    with pytest.raises(EmbedcacheError, match="column role 'lable' is not known; did you mean 'label'"):
        rows_of_table(tmp_path / "t.parquet", {"lable": "label"})


@pytest.mark.parametrize("content", [b"", b"path,label\n1.png,a\n", b"PAR1" + b"\0" * 60 + b"PAR1"])
def test_damaged_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        rows_of_table(tmp_path / "t.parquet")


def test_a_table_is_opened_by_its_path_and_read_pixel_for_pixel(tmp_path: Path, write_picture: PictureWriter) -> None:
    folder = tmp_path / "chips"
    pixels = {f"deep/{i}.png": write_picture(folder / f"deep/{i}.png", seed=i) for i in range(3)}
    write_parquet(folder / "t.parquet", path=list(pixels), label=["a", "b", "a"], split=["train", "val", "test"])
    source = open_dataset(str(folder / "t.parquet"))
    assert (source.info.name, name_in_cache(str(folder / "t.parquet"))) == ("chips", "chips")
    assert list(source.sample_ids) == list(pixels)
    for i, image in enumerate(pixels.values()):
        np.testing.assert_array_equal(source.read(i, ["RED", "GREEN", "BLUE"]).image, image.transpose(2, 0, 1))
    assert source.files(1) == (folder / "deep/1.png",)
    with pytest.raises(EmbedcacheError, match="--dataset-arg is for tables"):
        open_dataset(f"folder:{folder}", options=OpenOptions(arguments={"path": "x"}))
    (folder / "notes.txt").touch()
    with pytest.raises(DatasetError, match=r"notes\.txt' is neither a folder nor a table"):
        open_dataset(f"folder:{folder}/notes.txt")
