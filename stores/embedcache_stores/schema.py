"""What a feature store holds, as plain frozen facts. No I/O here."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias, get_args

import numpy as np

SCHEMA_VERSION: Final = 2
READABLE_VERSIONS: Final = (1, 2)
"""1 knew neither encodings, compression, shards nor content hashes; all it holds is read as it was."""
SAMPLE_DIM: Final = "sample"
STRING: Final = "string"
VIEW_DIM: Final = "view"
"""Axis after ``sample`` of arrays with augmented views, and name of the small array that names them."""
IDENTITY: Final = "identity"
"""Name of the view of the image as it is; always the first, and the only one of a store without views."""
COORDINATES: Final = ("sample_id", "split", "lat", "lon", "time", VIEW_DIM)
"""Columns that ``xr.open_zarr`` shows as coordinates, where a store has them."""

CONTENT: Final = "content_hash"
"""Column with the hash of each sample's files; its digest is part of a committed store's fingerprint."""
SKIPPED: Final = "skipped"
"""Split of a row whose image could not be used; its features are NaN."""

Json: TypeAlias = dict[str, Any]
Encoding: TypeAlias = Literal["bfloat16", "int8"]
Compression: TypeAlias = Literal["none", "lz4", "zstd"]


@dataclass(frozen=True, kw_only=True)
class LevelSpec:
    """One feature map of a backbone; lists of levels are ordered finest first."""

    index: int
    channels: int
    reduction: float
    """Input pixels per feature pixel (timm's word): 4 for the first level of a Hiera, 16 for a ViT/16."""
    height: int
    width: int

    @property
    def name(self) -> str:
        """Array name of this level in a store: ``level_0`` ..."""
        return f"level_{self.index}"

    def to_json(self) -> Json:
        """Plain JSON form, the inverse of :meth:`from_json`."""
        return {
            "index": self.index,
            "channels": self.channels,
            "reduction": self.reduction,
            "height": self.height,
            "width": self.width,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LevelSpec:
        """Build from :meth:`to_json`'s form."""
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array of a store, described without its leading ``sample`` axis."""

    name: str
    dims: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    dtype: str = "float16"
    """A numpy dtype name as it lies on disk, or ``"string"`` (columns only)."""
    encoding: Encoding | None = None
    """How floats lie in an integer ``dtype``: see :mod:`embedcache_stores.encodings`."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    views: int = 1
    """Augmented views of each sample; more than one make an axis ``view`` after ``sample``, which ``dims`` and
    ``shape``, those of one view, leave out."""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape on disk of one sample's part: ``shape``, under the axis of views where there is one."""
        return (self.views, *self.shape) if self.views > 1 else self.shape

    @property
    def stored_dims(self) -> tuple[str, ...]:
        """Names of the axes of :attr:`stored_shape`."""
        return (VIEW_DIM, *self.dims) if self.views > 1 else self.dims

    @property
    def stored_name(self) -> str:
        """Name of the array on disk; encoded arrays carry the encoding in it, so that nobody takes codes for values."""
        return {None: self.name, "bfloat16": f"{self.name}_bfloat16_bits", "int8": f"{self.name}_int8"}[self.encoding]

    @property
    def scale_name(self) -> str:
        """Name of the array of scales beside an int8 array."""
        return f"{self.name}_scale"

    @property
    def value_dtype(self) -> str:
        """Dtype of the values that readers get."""
        return self.dtype if self.encoding is None else "float32"

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample's part with all its views, uncompressed (strings count as 32)."""
        item = 32 if self.dtype == STRING else np.dtype(self.dtype).itemsize
        return item * int(np.prod(self.stored_shape, dtype=np.int64))

    def to_json(self) -> Json:
        """Plain JSON form, the inverse of :meth:`from_json`."""
        return {
            "name": self.name,
            "dims": list(self.dims),
            "shape": list(self.shape),
            "dtype": self.dtype,
            "encoding": self.encoding,
            "attrs": dict(self.attrs),
            **({"views": self.views} if self.views > 1 else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ArraySpec:
        """Build from :meth:`to_json`'s form."""
        return cls(
            name=data["name"],
            dims=tuple(data["dims"]),
            shape=tuple(data["shape"]),
            dtype=data["dtype"],
            encoding=data.get("encoding"),
            attrs=data["attrs"],
            views=int(data.get("views", 1)),
        )


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """Everything that must be known before the first row of a store is written."""

    sample_ids: tuple[str, ...]
    """Stable ids in row order; must be unique."""
    arrays: tuple[ArraySpec, ...]
    """Large arrays, one chunk per row group: pooled vectors, levels, masks."""
    columns: tuple[ArraySpec, ...]
    """Small per-sample values (split, label, lat ...), kept in the progress record and written whole at commit."""
    provenance: Mapping[str, Any]
    """All that decides the bytes; its hash is the fingerprint."""
    rows_per_group: int
    views: tuple[str, ...] = ()
    """Names of the augmented views in the order of their axis, ``identity`` first; empty where there is no axis."""
    rows_per_chunk: int | None = None
    """Fewer than ``rows_per_group`` makes each row group one shard of several chunks, for object stores."""
    compression: Compression = "none"
    max_saturation: float = 0.0
    """Share of a row group's values that may be cut to what their dtype holds."""
    environment: Mapping[str, Any] = field(default_factory=dict)
    """Recorded but not part of the identity: device, library versions, batch size."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """Plain facts for readers: class names, task, levels."""
    group_attrs: Mapping[str, Any] = field(default_factory=dict)
    """Further attributes of the root group, those of conventions that other tools read."""

    def __post_init__(self) -> None:
        if self.rows_per_group < 1:
            raise ValueError(f"rows_per_group must be at least 1, got {self.rows_per_group}")
        chunk = self.chunk_rows
        if not 1 <= chunk <= self.rows_per_group or self.rows_per_group % chunk:
            raise ValueError(f"rows_per_chunk must divide rows_per_group ({self.rows_per_group}), got {chunk}")
        if self.compression not in get_args(Compression):
            raise ValueError(f"compression must be one of {get_args(Compression)}, got {self.compression!r}")
        names = [a.name for a in (*self.arrays, *self.columns)] + ["sample_id"]
        names += [a.stored_name for a in self.arrays if a.encoding]
        names += [a.scale_name for a in self.arrays if a.encoding == "int8"]
        if len(set(names)) != len(names):
            raise ValueError(f"array names must be unique, got {sorted(names)}")
        wrong = [a.name for a in self.arrays if a.views not in {1, len(self.views)}]
        if wrong or len(self.views) == 1 or self.views[:1] not in {(), (IDENTITY,)}:
            raise ValueError(f"views must be none, or several that begin with {IDENTITY!r}, got {self.views} ({wrong})")
        if len(set(self.views)) != len(self.views):
            raise ValueError(f"views must be unique, got {self.views}")
        if len(set(self.sample_ids)) != len(self.sample_ids):
            twice = next(i for i, n in Counter(self.sample_ids).items() if n > 1)
            raise ValueError(f"sample ids must be unique, {twice!r} comes twice")

    @property
    def rows(self) -> int:
        """Number of samples."""
        return len(self.sample_ids)

    @property
    def groups(self) -> int:
        """Number of row groups."""
        return -(-self.rows // self.rows_per_group)

    def group_rows(self, group: int) -> slice:
        """Rows of one row group."""
        start = group * self.rows_per_group
        return slice(start, min(start + self.rows_per_group, self.rows))

    @property
    def chunk_rows(self) -> int:
        """Rows of one chunk."""
        return self.rows_per_chunk or self.rows_per_group

    @property
    def row_bytes(self) -> int:
        """Bytes of one sample over all large arrays, uncompressed."""
        return sum(a.row_bytes for a in self.arrays)

    @property
    def recipe(self) -> str:
        """Hash of what was asked; a committed store's fingerprint also covers the content of the samples."""
        return fingerprint(self.provenance)


def canonical_json(data: object) -> str:
    """JSON text that is equal for equal data, whatever the order of keys was.

    Raises
    ------
    TypeError
        If something is not plain JSON.
    ValueError
        If a number is NaN or infinite.
    """
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(provenance: Mapping[str, Any], content: Iterable[str] | None = None) -> str:
    """SHA-256 (hex) of the canonical JSON of all that decides a store's bytes.

    Parameters
    ----------
    provenance
        What was asked.
    content
        Hash of each sample's files in row order, where they are known; they then count too.
    """
    whole = provenance if content is None else {**provenance, CONTENT: ids_digest(content)}
    return hashlib.sha256(canonical_json(whole).encode()).hexdigest()


def ids_digest(sample_ids: Iterable[str]) -> str:
    """SHA-256 (hex) of sample ids in order; equal digests mean the same samples in the same rows."""
    digest = hashlib.sha256()
    for sample_id in sample_ids:
        raw = sample_id.encode()
        digest.update(len(raw).to_bytes(4, "little"))  # the length keeps ["ab","c"] and ["a","bc"] apart
        digest.update(raw)
    return digest.hexdigest()


_ABSENT: Final = "(absent)"


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """List (dotted field, stored value, asked value) wherever two provenances differ."""
    found: list[tuple[str, Any, Any]] = []
    for key in sorted({*stored, *asked}):
        left, right = stored.get(key, _ABSENT), asked.get(key, _ABSENT)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{prefix}{key}.")
        elif _ABSENT in (left, right) or canonical_json(left) != canonical_json(right):
            found.append((f"{prefix}{key}", left, right))
    return found


def rows_per_group_for(row_bytes: int, rows: int, *, target_bytes: int = 32 << 20, most: int = 1024) -> int:
    """Choose R, the rows of one row group: a power of two near ``target_bytes``.

    Measured in ``docs/decisions/0002-store-layout.md``: chunks of 8-32 samples of maps, or of about a thousand pooled
    vectors, are the friendliest to every reader. A store of few rows gets smaller groups, so that a kill loses at
    most an eighth of the work.
    """
    wanted = max(1, min(target_bytes // max(row_bytes, 1), most, max(32, rows // 8)))
    return 1 << (int(wanted).bit_length() - 1)


def level_arrays(levels: Sequence[LevelSpec], dtype: str, encoding: Encoding | None = None) -> tuple[ArraySpec, ...]:
    """Array specs of feature maps, dims ``(sample, channel_i, y_i, x_i)`` on each level's native grid."""
    return tuple(
        ArraySpec(
            name=level.name,
            dims=(f"channel_{level.index}", f"y_{level.index}", f"x_{level.index}"),
            shape=(level.channels, level.height, level.width),
            dtype=dtype,
            encoding=encoding,
            attrs={
                "long_name": f"feature map, level {level.index} (0 is the finest)",
                "units": "1",
                "reduction": level.reduction,
            },
        )
        for level in levels
    )
