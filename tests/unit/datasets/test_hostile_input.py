"""Damaged, odd and hostile files: refused by name, or made harmless; never a crash, a connection or a wrong number."""

from __future__ import annotations

import contextlib
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from affine import Affine

from embedcache.datasets._folder_tables import rows_of_folders
from embedcache.datasets._pickles import load_attribute
from embedcache.datasets._spec import OpenOptions
from embedcache.datasets._tables import rows_of_table
from embedcache.datasets.folder import FolderSource
from embedcache.datasets.geobench import GeoBenchSource
from embedcache.errors import DatasetError, EmbedcacheError, SampleError

Writer = Callable[..., Any]
HAND = r"""
import pickle
def text(s): b = s.encode(); return b"X" + len(b).to_bytes(4, "little") + b
def name(m, a): return text(m) + text(a) + b"\x93"
def call(f, *a): return f + b"(" + b"".join(a) + b"tR"
def byts(b): return b"C" + bytes([len(b)]) + b
ONE = b"K\x01\x85"  # (1,)
O = call(name("numpy", "dtype"), text("O"))
FORGED = (call(name("numpy", "dtype"), text("V8")) + b"(K\x03" + text("|") + b"N" + text("a") + b"\x85}" + text("a")
          + b"(" + O + b"K\x00ts" + b"K\x08K\x01K\x00tb")
"""


@pytest.mark.parametrize(
    "body",
    [
        'call(name("numpy", "ndarray"), ONE, O, byts(b"A" * 8))',
        'call(name("numpy", "ndarray"), ONE, FORGED, byts(b"A" * 8))',
        'call(name("numpy._core.multiarray", "scalar"), FORGED, byts(b"A" * 8))',
        'call(name("collections", "OrderedDict"), call(name("numpy", "ndarray"), ONE, O, byts(b"A" * 8)))',
    ],
    ids=["object array over bytes", "forged dtype", "forged scalar", "dereferenced inside load_pickle"],
)
def test_bytes_of_a_pickle_never_become_addresses_of_objects(body: str) -> None:
    script = (
        HAND
        + f"""
from embedcache.datasets._pickles import load_pickle
try:
    repr(load_pickle(b"\\x80\\x04" + {body} + b"."))
except ValueError:
    pass
"""
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_crs_in_a_pickle_makes_no_connection(write_geobench: Writer) -> None:
    hits: list[bytes] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def serve() -> None:
            try:
                peer, _ = server.accept()
                hits.append(peer.recv(100))
                peer.sendall(b"HTTP/1.0 404 no\r\nContent-Length: 0\r\n\r\n")
                peer.close()
            except OSError:
                pass

        threading.Thread(target=serve, daemon=True).start()
        band = {"transform": Affine(1, 0, 0, 0, 1, 0), "crs": f"http://127.0.0.1:{server.getsockname()[1]}/x"}
        GeoBenchSource(write_geobench("m-brick-kiln", extra={"04 - Red": band}).path, OpenOptions())
    assert hits == []


def test_crs_in_a_pickle_opens_no_file(write_geobench: Writer, tmp_path: Path) -> None:
    (tmp_path / "secret.wkt").write_text(
        'GEOGCS["x",DATUM["d",SPHEROID["s",6378137,298]],PRIMEM["G",0],UNIT["degree",0.01745]]'
    )
    band = {"transform": Affine(1.0, 0, 0, 0, 1.0, 0), "crs": str(tmp_path / "secret.wkt")}
    source = GeoBenchSource(write_geobench("m-brick-kiln", extra={"04 - Red": band}).path, OpenOptions())
    assert not source.info.has_location


@pytest.mark.parametrize("crs", ['LOCAL_CS["x",UNIT["metre",1]]', "EPSG:32633"])
def test_place_that_cannot_be_worked_out_is_no_place(write_geobench: Writer, crs: str) -> None:
    far = 1e30 if crs.startswith("EPSG") else 0.0
    band = {"transform": Affine(1.0, 0, far, 0, 1.0, far), "crs": crs}
    assert not GeoBenchSource(
        write_geobench("m-brick-kiln", extra={"04 - Red": band}).path, OpenOptions()
    ).info.has_location


def test_geotiff_in_a_local_grid_has_no_place(tmp_path: Path, write_geotiff: Writer) -> None:
    pixels = np.zeros((3, 4, 4), np.uint8)
    write_geotiff(
        tmp_path / "k" / "a.tif", pixels, crs='LOCAL_CS["x",UNIT["metre",1]]', transform=Affine(1.0, 0, 0, 0, -1.0, 0)
    )
    assert FolderSource(tmp_path, OpenOptions()).read(0, ["RED"]).lat is None


@pytest.mark.parametrize("attribute", ["{[]: 1}", "-" * 100_000 + "1", None], ids=["unhashable", "too deep", "none"])
def test_attribute_that_is_no_bytes_is_refused(attribute: Any) -> None:
    with pytest.raises(ValueError, match="its pickle"):
        load_attribute(attribute)


@pytest.mark.parametrize("label", ["abc", [1, 2], {}, 10**30, -5, 99])
def test_label_that_is_no_class_is_refused(write_geobench: Writer, label: Any) -> None:
    folder = write_geobench("m-brick-kiln", labels_in="pickle")
    with h5py.File(folder.path / "id_0001.hdf5", "a") as file:
        file.attrs["pickle"] = str(pickle.dumps({"label": label}))
    source = GeoBenchSource(folder.path, OpenOptions())
    with pytest.raises(SampleError, match="id_0001"):
        source.read(1, ["RED"])


@pytest.mark.parametrize("file", ["default_partition.json", "label_map.json"])
@pytest.mark.parametrize("content", ["{", "[]", '{"x": ["id_0000"]}', '{"train": 5, "0": 5}'])
def test_damaged_json_is_refused_with_a_sentence(write_geobench: Writer, file: str, content: str) -> None:
    folder = write_geobench("m-eurosat", classes=10)
    (folder.path / file).write_text(content)
    with pytest.raises(DatasetError):
        GeoBenchSource(folder.path, OpenOptions())


def test_flipped_bytes_in_a_file_are_its_samples_fault_and_nothing_else(write_geobench: Writer) -> None:
    folder = write_geobench("m-eurosat", classes=10)
    source = GeoBenchSource(folder.path, OpenOptions())
    bad = folder.path / "id_0001.hdf5"
    whole = bad.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(60):
        raw = bytearray(whole)
        for at in rng.integers(0, len(raw), 3):
            raw[at] = rng.integers(0, 256)
        bad.write_bytes(raw)
        with contextlib.suppress(EmbedcacheError):
            source.read(1, source.info.bands)


def test_mask_of_another_size_or_with_nan_is_refused(write_geobench: Writer) -> None:
    folder = write_geobench("m-chesapeake", ("Blue", "Green", "Red"), task="mask", dtype="float32")
    with h5py.File(folder.path / "id_0001.hdf5", "a") as file:
        del file["label"]
        file["label"] = np.full((3, 3), np.nan)
    with pytest.raises(SampleError, match="id_0001"):
        GeoBenchSource(folder.path, OpenOptions()).read(1, ["RED"])


def test_plain_colour_names_are_standard_names(write_geobench: Writer) -> None:
    info = GeoBenchSource(write_geobench("m-pv4ger", ("Blue", "Green", "Red"), dtype="uint8").path, OpenOptions()).info
    assert not any("without a standard name" in note for note in info.notes)


def test_bands_without_a_standard_name_are_noted(write_geobench: Writer) -> None:
    keys = ("01 - VH.Real", "02 - Blue", "Cloud Probability")
    notes = GeoBenchSource(write_geobench("m-own", keys).path, OpenOptions()).info.notes
    assert any("VH_REAL" in note and "CLOUD_PROBABILITY" in note for note in notes)


def test_dated_mask_over_undated_bands_gives_no_time(write_geobench: Writer) -> None:
    folder = write_geobench("m-chesapeake", ("Blue", "Green", "Red"), task="mask", mask_key="label_2017-01-01")
    source = GeoBenchSource(folder.path, OpenOptions())
    assert (source.read(0, ["RED"]).time is not None) == source.info.has_time


@pytest.mark.parametrize("kind", ["folder", "geobench"])
def test_dataset_whose_first_image_is_bad_can_still_be_opened(
    tmp_path: Path, write_geobench: Writer, write_picture: Writer, kind: str
) -> None:
    if kind == "folder":
        for name in "ab":
            write_picture(tmp_path / "k" / f"{name}.jpg", size=32)
        bad = tmp_path / "k" / "a.jpg"
        bad.write_bytes(bad.read_bytes()[:300])
        source: Any = FolderSource(tmp_path, OpenOptions())
    else:
        folder = write_geobench("m-eurosat", classes=10)
        bad = folder.path / "id_0000.hdf5"
        bad.write_bytes(bad.read_bytes()[:300])
        source = GeoBenchSource(folder.path, OpenOptions())
    with pytest.raises(SampleError):
        source.read(0, ["RED"])
    source.read(1, ["RED"])


@pytest.mark.parametrize("text", ["label,path\n0\n1,a.png\n", "path,label\n,0\n", "path,label\na.png,\u00e9\n"])
def test_broken_csv_is_refused_with_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError):
        rows_of_table(tmp_path / "t.csv")


def test_superscript_in_a_class_name_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "2²").mkdir()
    (tmp_path / "2²" / "a.png").touch()
    assert rows_of_folders(tmp_path).class_names == ("2²",)


def test_classes_that_count_the_same_keep_one_order_in_every_run(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label\na,1\nb,01\nc,001\n")
    script = (
        "from pathlib import Path; from embedcache.datasets._tables import rows_of_table; "
        f"print(rows_of_table(Path({str(tmp_path / 't.csv')!r})).class_names)"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", script], env={"PYTHONHASHSEED": str(s)}, capture_output=True, check=True
        ).stdout
        for s in range(6)
    }
    assert len(runs) == 1


def test_line_number_counts_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,split\na,0,train\n\nb,1,holdout\n")
    with pytest.raises(DatasetError, match="line 4"):
        rows_of_table(tmp_path / "t.csv")


def test_one_label_with_two_class_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,class\na,0,water\nb,0,forest\n")
    with pytest.raises(DatasetError):
        rows_of_table(tmp_path / "t.csv")


@pytest.mark.parametrize("row", ["nan,1", "91,1", "1,181", "1,inf"])
def test_place_off_the_earth_is_refused(tmp_path: Path, row: str) -> None:
    (tmp_path / "t.csv").write_text(f"path,label,lat,lon\na,0,{row}\n")
    with pytest.raises(DatasetError, match="line 2"):
        rows_of_table(tmp_path / "t.csv")


def test_latitude_without_longitude_is_no_location(tmp_path: Path, write_picture: Writer) -> None:
    write_picture(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text("path,label,lat\na.png,0,5\n")
    assert not FolderSource(tmp_path / "t.csv", OpenOptions()).info.has_location


def test_16_bit_rgb_png_is_not_silently_cut_to_8_bits(tmp_path: Path) -> None:
    import struct
    import zlib

    (tmp_path / "k").mkdir()
    rows = b"".join(b"\0" + np.full((4, 3), 300, ">u2").tobytes() for _ in range(4))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "k" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    try:
        image = FolderSource(tmp_path, OpenOptions()).read(0, ["RED"]).image
    except EmbedcacheError:
        return
    assert image.max() == 300


def test_picture_that_unpacks_to_gigabytes_is_its_samples_fault(tmp_path: Path, write_picture: Writer) -> None:
    import struct
    import zlib

    write_picture(tmp_path / "k" / "a.png")
    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b"")]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    (tmp_path / "k" / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with pytest.raises(SampleError, match=r"k/b\.png"):
        FolderSource(tmp_path, OpenOptions()).read(1, ["RED"])


def test_three_bands_with_names_that_are_not_rgb_are_not_taken_for_rgb(tmp_path: Path, write_geotiff: Writer) -> None:
    write_geotiff(tmp_path / "k" / "a.tif", np.zeros((3, 4, 4), np.uint16), descriptions=["B08", "B04", "NDVI"])
    try:
        bands = FolderSource(tmp_path, OpenOptions()).info.bands
    except EmbedcacheError:
        return
    assert bands[0] != "RED"
