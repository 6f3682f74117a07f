"""Writes the large arrays of row groups: the half of the writer that many processes may share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embedcache_stores.chunks import ArrayFiles, crc32c
from embedcache_stores.durable import explained_writes
from embedcache_stores.encodings import Encoded, decode, encode, max_abs
from embedcache_stores.errors import SaturatedError
from embedcache_stores.place import Location, open_place
from embedcache_stores.schema import STRING, ArraySpec, Json, StoreSpec


class GroupWriter:
    """Writes the large arrays of row groups, and nothing else; what it returns goes to :meth:`FeatureWriter.record`.

    This is the half of the writer that may run in many processes at once: each row group is files of its own, so
    workers that write different groups never meet. It takes no lock; the :class:`FeatureWriter` that hands out the
    groups holds it, and alone knows what counts as written.
    """

    def __init__(self, location: Location, spec: StoreSpec) -> None:
        """Prepare to write into a store that a :class:`FeatureWriter` has begun; nothing is touched."""
        self.place = open_place(location)
        self.spec = spec
        self._files = {a.name: ArrayFiles(a, spec) for a in spec.arrays}

    def metadata(self) -> dict[str, bytes]:
        """Return the Zarr metadata of each array, by its name on disk."""
        return {files.spec.stored_name: files.metadata for files in self._files.values()}

    def write(
        self,
        group: int,
        arrays: Mapping[str, npt.NDArray[Any] | Encoded],
        columns: Mapping[str, npt.NDArray[Any]],
    ) -> Json:
        """Write one whole row group's arrays; when this returns they are durable, but do not count yet.

        Parameters
        ----------
        group
            Index of the row group.
        arrays
            Every large array by name, each ``(rows of the group, *stored_shape)``, in the dtype on disk, or float32
            where that is to be encoded, or encoded already.
        columns
            Every column by name, each ``(rows of the group, *shape)``.

        Returns
        -------
        dict
            The row group's line in the progress record, plain JSON.

        Raises
        ------
        ValueError
            If names, shapes or dtypes are not those of the spec.
        SaturatedError
            If more values than ``spec.max_saturation`` allows are beyond the dtype's range.
        StoreWriteError
            If the file system refuses.
        """
        if not 0 <= group < self.spec.groups:
            raise ValueError(f"group must be in 0..{self.spec.groups - 1}, got {group}")
        rows = self.spec.group_rows(group)
        given = {name: a.data if isinstance(a, Encoded) else a for name, a in arrays.items()}
        _check(given, self.spec.arrays, rows)
        _check(columns, self.spec.columns, rows)
        record: Json = {
            "group": group,
            "columns": {c.name: to_json(columns[c.name]) for c in self.spec.columns},
        }
        encoded = {a.name: encode(arrays[a.name], a) for a in self.spec.arrays}
        record["max_abs"] = {
            a.name: max_abs(decode(encoded[a.name].data, a, encoded[a.name].scale)) for a in self.spec.arrays
        }
        for a in self.spec.arrays:
            cut, size = encoded[a.name].saturated, encoded[a.name].data.size
            if cut > self.spec.max_saturation * size:
                raise SaturatedError(
                    f"{cut} of {size} values of {a.name} in rows {rows.start}..{rows.stop - 1} are beyond what "
                    f"{a.dtype} holds, more than the share of {self.spec.max_saturation:g} that is allowed; store it "
                    "with --dtype bfloat16 or float32."
                )
        if saturated := {name: e.saturated for name, e in encoded.items() if e.saturated}:
            record["saturated"] = saturated
        if scales := {name: e.scale.tolist() for name, e in encoded.items() if e.scale is not None}:
            record["scales"] = scales
        record["crc32c"] = {}
        with explained_writes(self.place.url):
            for a in self.spec.arrays:
                key, parts = self._files[a.name].of_group(group, encoded[a.name].data)
                # A plain file ends with the checksum of its rows; of others, the whole file's is recorded.
                record["crc32c"][a.name] = (parts[-1] if len(parts) > 1 else crc32c(*parts)).hex()
                self.place.write(f"{a.stored_name}/{key}", *parts)
                self.place.sync(a.stored_name)
        return record


def _check(given: Mapping[str, npt.NDArray[Any]], specs: Iterable[ArraySpec], rows: slice) -> None:
    expected = {s.name: s for s in specs}
    if set(given) != set(expected):
        raise ValueError(f"expected arrays {sorted(expected)}, got {sorted(given)}")
    for name, values in given.items():
        spec = expected[name]
        shape = (rows.stop - rows.start, *spec.stored_shape)
        if values.shape != shape:
            raise ValueError(f"array {name!r} must have shape {shape}, got {values.shape}")
        encodable = values.dtype == np.float32 and (spec.encoding is not None or spec.dtype == "float16")
        if spec.dtype == STRING:
            if any(not isinstance(v, str) for v in values.flat):
                raise ValueError(f"array {name!r} must hold strings only")
        elif values.dtype != np.dtype(spec.dtype) and not encodable:
            raise ValueError(f"array {name!r} must have dtype {spec.dtype}, got {values.dtype}")


def to_json(values: npt.NDArray[Any]) -> list[Any]:
    """Return a column's values as JSON knows them: NaN becomes None."""
    if values.dtype.kind == "f" and np.isnan(values).any():  # NaN has no JSON form
        plain = values.astype(object)
        plain[np.isnan(values)] = None
        values = plain
    out: list[Any] = values.tolist()
    return out


def from_json(values: Sequence[Any], spec: ArraySpec) -> npt.NDArray[Any]:
    """Return a column from the JSON values that :meth:`GroupWriter.write` recorded."""
    if spec.dtype == STRING:
        return np.array(values, dtype=object)
    return np.array(values, dtype=spec.dtype).reshape(len(values), *spec.shape)  # None becomes NaN
