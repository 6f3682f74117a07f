"""The read side of a committed feature store."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import zarr

from embedcache_stores.chunks import chunk_key
from embedcache_stores.direct import DirectReader
from embedcache_stores.encodings import decode
from embedcache_stores.errors import DamagedStoreError, StoreChangedError, StoreNotFoundError
from embedcache_stores.manifest import COMMIT_FILE, SUFFIX, StoreManifest, find_stores, read_manifest
from embedcache_stores.place import Location, Place, open_place
from embedcache_stores.schema import IDENTITY, VIEW_DIM, ArraySpec, LevelSpec

if TYPE_CHECKING:
    import dask.array as da
    import xarray as xr

ViewChoice: TypeAlias = "str | npt.NDArray[np.integer[Any]]"
"""A view's name, or the place of each row's own among the views of the store."""


class FeatureStore:
    """Read-only view of one committed store; opening it reads one small file.

    Arrays are ``(sample, channel)`` for pooled vectors and ``(sample, channel, y, x)`` for levels: of the image as it
    is, or of the augmented view that is asked for. Encoded arrays (bfloat16, int8) are decoded to float32 by every
    method but :meth:`array` and :meth:`direct`. The same store opens without embedcache: ``xr.open_zarr(path)``.
    """

    def __init__(self, location: Location, *, check: bool = True) -> None:
        """Open the store at a path or URL.

        Parameters
        ----------
        location
            Of the store.
        check
            Compare each chunk's checksum the first time it is read. Without, a local uncompressed store is read at the
            speed of memory from the first pass on, and ``embedcache verify`` is what finds flipped bits.

        Raises
        ------
        StoreNotFoundError, NotAStoreError, IncompleteStoreError
            With what was found and what to do.
        """
        self._check = check
        self.place: Place = open_place(location)
        self._version = self._version_now()
        self.manifest: StoreManifest = read_manifest(self.place)
        self._scales: dict[str, npt.NDArray[np.float32]] = {}
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._direct: dict[str, DirectReader] = {}

    def __repr__(self) -> str:
        arrays = ", ".join(f"{a.name}{list(a.shape)}" for a in self.manifest.arrays)
        return f"<FeatureStore {self.manifest.dataset}/{self.name}: {self.rows} rows, {arrays}>"

    @property
    def path(self) -> Path:
        """Folder of a store on a local disk; TypeError elsewhere."""
        return self.manifest.path

    @property
    def name(self) -> str:
        """Name on the command line, e.g. ``sam2_hiera_tiny``."""
        return self.manifest.name

    @property
    def rows(self) -> int:
        """Number of samples."""
        return self.manifest.rows

    @property
    def levels(self) -> tuple[LevelSpec, ...]:
        """Feature maps in the store, finest first."""
        return self.manifest.levels

    @property
    def views(self) -> tuple[str, ...]:
        """Augmented views of each sample; ``("identity",)`` where there is only the image as it is."""
        return self.manifest.views

    def spec(self, name: str) -> ArraySpec:
        """Return what is known of one array or column.

        Raises
        ------
        StoreNotFoundError
            If the store has no such array; the message lists those it has.
        """
        specs = {a.name: a for a in (*self.manifest.columns, *self.manifest.arrays)}
        if name == "sample_id" or (name == VIEW_DIM and len(self.views) > 1):
            return ArraySpec(name=name, dtype="string")
        if name not in specs:
            raise StoreNotFoundError(
                f"store {self.name!r} has no array {name!r}; it has {', '.join(['sample_id', *specs])}."
            )
        return specs[name]

    def has(self, name: str) -> bool:
        """Whether the store has an array or column of that name."""
        return any(a.name == name for a in (*self.manifest.columns, *self.manifest.arrays))

    def array(self, name: str) -> zarr.Array[Any]:
        """Return one array as Zarr, as it lies on disk (codes, where it is encoded); nothing is read yet."""
        return self._zarr(self.spec(name).stored_name)

    def direct(self, name: str) -> DirectReader | None:
        """Return the fast reader of one large array, in its dtype on disk; None for compressed or remote stores."""
        if not (self.place.is_local and self.manifest.plain) or name not in {a.name for a in self.manifest.arrays}:
            return None
        if name not in self._direct:
            spec = self.spec(name)
            self._direct[name] = DirectReader(
                self.path / spec.stored_name,
                spec,
                self.rows,
                self.manifest.rows_per_group,
                check=self._check,
                still=self._still,
            )
        return self._direct[name]

    def column(self, name: str) -> npt.NDArray[Any]:
        """Read a whole small column: ``sample_id``, ``split``, ``label``, ``lat`` ... Strings come as object arrays."""
        with self._damage_named(name, None):
            values = np.asarray(self.array(name)[:])
        self._still()
        return values.astype(object) if values.dtype.kind == "T" else values

    @cached_property
    def sample_ids(self) -> npt.NDArray[Any]:
        """Sample ids in row order, ``(sample,)``."""
        return self.column("sample_id")

    @cached_property
    def split(self) -> npt.NDArray[Any]:
        """Split of each row, ``(sample,)``: ``train``, ``val``, ``test``, or ``skipped`` for unreadable images."""
        return self.column("split")

    def read(self, name: str, rows: npt.NDArray[np.integer[Any]], view: ViewChoice = IDENTITY) -> npt.NDArray[Any]:
        """Read chosen rows of one array or column, in the order asked: ``(len(rows), *shape)``, decoded.

        Parameters
        ----------
        name
            Of the array.
        rows
            ``(n,)``, in any order; may repeat.
        view
            The name of an augmented view, or ``(n,)`` places in :attr:`views`, one a row. No other view is copied.

        Raises
        ------
        StoreNotFoundError
            If the store has no such array, or the array no such view.
        StoreChangedError
            If the store was written anew since it was opened, and the rows were not read before.
        IndexError
            If a row is not in the store, or ``rows`` is no array of integers.
        DamagedStoreError
            If a file is lost, cut short, or (compressed and remote stores) its checksum is wrong.
        """
        spec = self.spec(name)
        rows = self._checked(rows)
        if name not in {a.name for a in self.manifest.arrays}:
            self._places(spec, len(rows), view)
            return self.column(name)[rows]
        out = np.empty((len(rows), *spec.shape), dtype=np.dtype(spec.dtype))
        self.read_stored_into(name, rows, out, view)
        return decode(out, spec, self.scale(name, rows))

    def read_stored_into(
        self,
        name: str,
        rows: npt.NDArray[np.integer[Any]],
        out: npt.NDArray[Any],
        view: ViewChoice = IDENTITY,
    ) -> None:
        """Copy chosen rows as they lie on disk into a buffer ``(len(rows), *shape)``; see :meth:`read`."""
        rows, spec = self._checked(rows), self.spec(name)
        views = self._places(spec, len(rows), view)
        reader = self.direct(name)
        if reader is not None:
            reader.read_into(rows, out, views)
            return
        array = self.array(name)
        step = self.manifest.rows_per_chunk
        groups = rows // step
        for group in np.unique(groups):
            here = np.flatnonzero(groups == group)
            first, end = int(group) * step, min((int(group) + 1) * step, self.rows)
            wanted = np.unique(views[here])
            with self._damage_named(name, first // self.manifest.rows_per_group):
                if spec.views == 1:
                    block = np.asarray(array[first:end])[:, None]
                elif len(wanted) == 1:
                    block = np.asarray(array[first:end, int(wanted[0])])[:, None]
                else:  # one visit for all: a compressed chunk holds every view
                    block = np.asarray(array[first:end])[:, wanted]
            self._still()
            out[here] = block[rows[here] - first, np.searchsorted(wanted, views[here])]

    def read_whole(self, name: str, rows: slice) -> npt.NDArray[Any]:
        """Read rows of a large array as they lie on disk, with all views: ``(rows, *stored_shape)``."""
        spec = self.spec(name)
        count = rows.stop - rows.start
        out = np.empty((count * spec.views, *spec.shape), dtype=np.dtype(spec.dtype))
        every = np.repeat(np.arange(rows.start, rows.stop), spec.views)
        self.read_stored_into(name, every, out, np.tile(np.arange(spec.views), count))
        return out.reshape(count, *spec.stored_shape)

    def scale(self, name: str, rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32] | None:
        """Scales of rows of an int8 array, ``(len(rows), channel)``; None for other arrays."""
        if self.spec(name).encoding != "int8":
            return None
        per_row: npt.NDArray[np.float32] = self.scales(name)[np.asarray(rows) // self.manifest.rows_per_group]
        return per_row

    def scales(self, name: str) -> npt.NDArray[np.float32]:
        """All scales of an int8 array, ``(row_group, channel)`` float32."""
        if name not in self._scales:
            self._scales[name] = np.asarray(self.scale_array(name)[:])
            self._still()
        return self._scales[name]

    def scale_array(self, name: str) -> zarr.Array[Any]:
        """Return the scales of an int8 array as Zarr; nothing is read yet."""
        return self._zarr(self.spec(name).scale_name)

    def to_dask(self, name: str, view: str | None = IDENTITY) -> da.Array:
        """Return one array as a lazy Dask array with one chunk per row group, decoded; nothing is read.

        Of the augmented views it is the one named; None keeps all, ``(sample, view, ...)``.
        """
        from embedcache_stores.lazy import to_dask

        lazy, spec = to_dask(self, name), self.spec(name)
        if view is None:
            return lazy
        place = int(self._places(spec, 1, view)[0])
        return lazy[:, place] if spec.views > 1 else lazy

    def to_xarray(self) -> xr.Dataset:
        """Return the whole store as a lazy ``xarray.Dataset``, as ``xr.open_zarr`` does, encoded arrays decoded."""
        from embedcache_stores.lazy import to_xarray

        return to_xarray(self)

    def _version_now(self) -> tuple[int, int] | None:
        """Tell one commit record from the next; None in a bucket, where asking would cost a request a read."""
        if not self.place.is_local:
            return None
        try:
            status = (Path(self.place) / COMMIT_FILE).stat()
        except (FileNotFoundError, NotADirectoryError):
            return (0, 0)
        return status.st_ino, status.st_mtime_ns

    def _still(self) -> None:
        """Raise where the store was written anew since it was opened, so that nobody gets a mixture."""
        if self._version_now() != self._version:
            raise StoreChangedError(
                f"store {self.place.url!r} was written anew, or removed, since it was opened; open it again."
            )

    def _checked(self, rows: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int64]:
        given = np.asarray(rows)
        if given.dtype.kind not in "iu" and given.size:
            raise IndexError(f"rows must be integers, got {given.dtype} (for a mask, take np.flatnonzero of it)")
        if given.size and (int(given.min()) < 0 or int(given.max()) >= self.rows):
            raise IndexError(f"rows must be in 0..{self.rows - 1}, got {given.min()}..{given.max()}")
        return given.astype(np.int64, copy=False)

    def _places(self, spec: ArraySpec, count: int, view: ViewChoice) -> npt.NDArray[np.int64]:
        """Return the place of the wanted view of each of ``count`` rows."""
        has = self.views[: spec.views]
        if isinstance(view, str):
            if view not in has:
                raise StoreNotFoundError(
                    f"{spec.name} of store {self.name!r} has no view {view!r}; it has {', '.join(has)} ('embedcache "
                    "extract --views' stores them)."
                )
            return np.full(count, has.index(view), dtype=np.int64)
        places = np.asarray(view, dtype=np.int64)
        if places.shape != (count,):
            raise IndexError(f"views must be one a row, ({count},), got {places.shape}")
        if count and (int(places.min()) < 0 or int(places.max()) >= len(has)):
            raise IndexError(f"views must be in 0..{len(has) - 1}, got {places.min()}..{places.max()}")
        return places

    def _zarr(self, stored_name: str) -> zarr.Array[Any]:
        if stored_name not in self._arrays:
            store, path = self.place.zarr_store()
            with _fastest_pipeline(local=self.place.is_local):
                group = zarr.open_group(store, path=path, mode="r")
                array = group[stored_name]
            if not isinstance(array, zarr.Array):
                raise StoreNotFoundError(f"{stored_name!r} in store {self.name!r} is not an array.")
            self._arrays[stored_name] = array
        return self._arrays[stored_name]

    @contextmanager
    def _damage_named(self, name: str, group: int | None) -> Iterator[None]:
        """Say which file and rows are damaged where zarr says only that something is."""
        spec = self.spec(name)
        key = spec.stored_name if group is None else f"{spec.stored_name}/{chunk_key(group, spec)}"
        where = self.place.child(key).url
        if group is not None and not self.place.exists(key):  # zarr takes it for a chunk of zeros
            raise DamagedStoreError(where, f"of {name!r}", "is lost")
        try:
            yield
        except (ValueError, RuntimeError, FileNotFoundError) as error:
            raise DamagedStoreError(where, "", f"cannot be read ({error})") from error


@contextmanager
def _fastest_pipeline(*, local: bool) -> Iterator[None]:
    """Open arrays with the Rust codec pipeline where it is installed; only to read, it does not write atomically."""
    if local and importlib.util.find_spec("zarrs") is not None:
        with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
            yield
    else:
        yield


def open_store(cache: Location, dataset: str, name: str) -> FeatureStore:
    """Open ``CACHE/<dataset>/<name>.zarr``.

    Raises
    ------
    StoreNotFoundError
        If it is not there; the message lists the stores that the cache has for the dataset.
    """
    root = open_place(cache)
    place = root.child(dataset).child(f"{name}{SUFFIX}")
    if not place.found():
        stores = list(find_stores(root))
        names = [m.name for m in stores if m.dataset == dataset]
        if names:
            found = f"for {dataset!r} it has {', '.join(names)}"
        elif stores:
            found = f"it has stores of {', '.join(sorted({m.dataset for m in stores}))}"
        else:
            found = "it holds no feature store at all"
        raise StoreNotFoundError(
            f"no features {name!r} of dataset {dataset!r} in cache {root.url!r}: {found}. 'embedcache extract' "
            "makes them."
        )
    return FeatureStore(place)
