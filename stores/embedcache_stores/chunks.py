"""Which files an array's rows lie in, and what is in those files; zarr decides both, and a test says that we agree.

An uncompressed chunk is its rows in C order, little endian, then four bytes of CRC-32C. Everything else (compression,
shards, strings) is encoded by zarr itself, into memory; the files are then written by our own rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.storage import MemoryStore

from embedcache_stores.schema import SAMPLE_DIM, STRING, ArraySpec, StoreSpec, rows_per_group_for

METADATA = "zarr.json"
CRC_BYTES = 4
_COLUMN_CHUNK = 65536
_GROUP_BYTES, _SHARD_BYTES, _SHARD_CHUNK_BYTES = 32 << 20, 128 << 20, 16 << 20
_ZARR: Any = {"write_empty_chunks": True}
"""zarr leaves out chunks that hold the fill value only (a mask of background, say); we want every chunk on disk, so
that one that is missing is known to be lost."""

Parts = tuple[Any, ...]


def chunk_key(group: int, spec: ArraySpec) -> str:
    """File of a row group (or of a chunk of a column) in its array's folder: ``c.3.0.0.0``."""
    return ".".join(["c", str(group), *("0" for _ in spec.stored_shape)])


def crc32c(*parts: Any) -> bytes:
    """CRC-32C of buffers one after the other, as it is stored."""
    value = 0
    for part in parts:
        value = google_crc32c.extend(value, np.frombuffer(part, dtype=np.uint8))
    return int(value).to_bytes(CRC_BYTES, "little")


class ArrayFiles:
    """Makes the files of one large array, row group by row group."""

    def __init__(self, spec: ArraySpec, store: StoreSpec) -> None:
        self.spec = spec
        self._rows_per_group = store.rows_per_group
        self._plain = store.compression == "none" and store.chunk_rows == store.rows_per_group
        self._memory: dict[str, Any] = {}
        sharded = store.chunk_rows < store.rows_per_group
        self._array = zarr.create_array(
            MemoryStore(self._memory),
            shape=(store.rows, *spec.stored_shape),
            # A chunk of a shard holds one view, so that reading one costs no other.
            chunks=(store.chunk_rows, *((1, *spec.shape) if sharded and spec.views > 1 else spec.stored_shape)),
            shards=(store.rows_per_group, *spec.stored_shape) if sharded else None,
            dtype=spec.dtype,
            serializer=BytesCodec(endian="little"),
            compressors=[*_compressors(store.compression, spec.dtype), Crc32cCodec()],
            chunk_key_encoding={"name": "default", "separator": "."},  # one flat folder per array
            dimension_names=(SAMPLE_DIM, *spec.stored_dims),
            attributes=_attributes(spec),
            fill_value=0,
            config=_ZARR,
        )
        self.metadata: bytes = self._memory[METADATA].to_bytes()

    def of_group(self, group: int, data: npt.NDArray[Any]) -> tuple[str, Parts]:
        """Return the key and the bytes, in parts, of a row group's file; ``data`` is as on disk."""
        key = chunk_key(group, self.spec)
        if self._plain:
            data = np.ascontiguousarray(data, dtype=np.dtype(self.spec.dtype).newbyteorder("<"))
            short = self._rows_per_group - len(data)  # zarr stores whole chunks, the last one filled up
            rows = data.reshape(-1).view(np.uint8) if data.size else b""
            fill = bytes(short * self.spec.row_bytes)
            return key, (rows, fill, crc32c(rows, fill))
        start = group * self._rows_per_group
        self._array[start : start + len(data)] = data
        return key, (self._memory.pop(key).to_bytes(),)


def layout_for(row_bytes: int, rows: int, *, local: bool, views: int = 1) -> tuple[int, int | None]:
    """Rows per row group and per chunk: on a disk a group is one chunk, in a bucket a shard of several chunks.

    A group of rows with views may be up to four times as large, so that it still holds enough rows for a batch.
    """
    if local:
        return rows_per_group_for(row_bytes, rows, target_bytes=min(views, 4) * _GROUP_BYTES), None
    group = rows_per_group_for(row_bytes, rows, target_bytes=_SHARD_BYTES, most=8192)
    return group, min(group, rows_per_group_for(row_bytes // views, rows, target_bytes=_SHARD_CHUNK_BYTES))


def column_files(spec: ArraySpec, values: npt.NDArray[Any], leading: str = SAMPLE_DIM) -> dict[str, bytes]:
    """Return every file of a whole small array, metadata included, by key."""
    string = spec.dtype == STRING
    memory: dict[str, Any] = {}
    array = zarr.create_array(
        MemoryStore(memory),
        shape=(len(values), *spec.shape),
        chunks=(max(1, min(len(values), _COLUMN_CHUNK)), *spec.shape),
        dtype=spec.dtype,
        serializer="auto" if string else BytesCodec(endian="little"),
        compressors=Crc32cCodec(),
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=(leading, *spec.dims),
        attributes=_attributes(spec),
        fill_value="" if string else 0,
        config=_ZARR,
    )
    array[:] = values
    return {key: buffer.to_bytes() for key, buffer in memory.items()}


def _compressors(name: str, dtype: str) -> Sequence[Any]:
    if name == "none":
        return ()
    shuffle: Any = "bitshuffle"
    return (
        BloscCodec(
            cname="lz4" if name == "lz4" else "zstd", clevel=3, shuffle=shuffle, typesize=np.dtype(dtype).itemsize
        ),
    )


def _attributes(spec: ArraySpec) -> dict[str, Any]:
    how = {
        None: {},
        "bfloat16": {
            "encoding": "bfloat16",
            "comment": "bits of bfloat16 in uint16: value = (bits << 16) reinterpreted as float32",
        },
        "int8": {
            "encoding": "int8",
            "comment": f"value = code * {spec.scale_name}[row_group, channel]; -128 is NaN",
        },
    }[spec.encoding]
    return {**spec.attrs, **how}
