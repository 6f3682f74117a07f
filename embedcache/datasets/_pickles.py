"""Reads the pickles inside GEO-Bench files without trusting them.

A pickle is a program. GEO-Bench's name classes of ``geobench``, ``affine`` and ``rasterio``; here each becomes an
inert :class:`Stub` that keeps what the pickle says about it, a short list of harmless builders is allowed, and
anything else is refused before it runs.
"""

from __future__ import annotations

import ast
import collections
import datetime
import io
import pickle
import pickletools
import re
from typing import Any

import numpy as np

_STUBBED = ("geobench.", "ccb.", "affine", "rasterio.")
_PLAIN = re.compile(r"[<>=|]?[biuf][1248]|[<>=|]?U\d{1,4}")


class Stub:
    """Stands for an object of a class that is not loaded: its arguments and its state, and no behaviour."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        """Keep the arguments; pickles may make objects without calling ``__init__``."""
        stub = super().__new__(cls)
        stub.args, stub.state = args, kwargs
        return stub

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept anything; :meth:`__new__` has kept it."""

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def get(self, key: str) -> Any:
        """Return one attribute of the original object, or None."""
        return self.state.get(key) if isinstance(self.state, dict) else None


class _Dtype:
    """A plain numeric dtype; the pickle may choose its byte order and nothing else of it."""

    def __init__(self, text: Any, align: Any = False, copy: Any = True) -> None:
        if not isinstance(text, str) or not _PLAIN.fullmatch(text):
            raise pickle.UnpicklingError(f"it asks for arrays of {text!r}, which is not allowed")
        self.dtype = np.dtype(text)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array(np.ndarray[Any, Any]):
    """An array that fills itself from plain bytes only."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("it holds an array that is not plain numbers")
        super().__setstate__((1, shape, dtype.dtype, bool(fortran), raw))  # type: ignore[arg-type]


class _Builder:
    """A function that a pickle may call. A class with ``__setstate__``, so that no pickle can set attributes on it."""

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it changes a builder")


class _Reconstruct(_Builder):
    def __new__(cls, *_: Any) -> Any:
        return np.ndarray.__new__(_Array, (0,), np.uint8)


class _Scalar(_Builder):
    def __new__(cls, dtype: Any, raw: Any) -> Any:
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
            raise pickle.UnpicklingError("it holds a scalar that is not a plain number")
        return np.frombuffer(raw, dtype.dtype, count=1)[0]


_ALLOWED: dict[tuple[str, str], Any] = {
    ("datetime", "date"): datetime.date,
    ("datetime", "datetime"): datetime.datetime,
    ("datetime", "timedelta"): datetime.timedelta,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "ndarray"): object(),  # named by every array, never called
    ("numpy", "dtype"): _Dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Scalar for core in ("core", "_core")},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(_STUBBED) or module in {"affine", "geobench"}:
            return type(name, (Stub,), {"__module__": "embedcache.datasets._pickles"})
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")


def load_pickle(raw: bytes) -> Any:
    """Read a pickle; objects of unknown harmless classes come as :class:`Stub`.

    Raises
    ------
    ValueError
        If the pickle asks for anything that could run code, or is damaged.
    """
    try:
        _refuse_bombs(raw)
        return _Unpickler(io.BytesIO(raw)).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"its pickle is refused: {error}") from error


def _refuse_bombs(raw: bytes) -> None:
    """Refuse a memo index beyond the pickle's own length: a few bytes could make the unpickler allocate gigabytes."""
    for opcode, argument, _ in pickletools.genops(raw):
        if "PUT" in opcode.name and isinstance(argument, int) and argument > len(raw):
            raise pickle.UnpicklingError("it asks for a memo larger than itself")


def load_attribute(text: Any) -> Any:
    """Read a pickle that was stored as ``str(bytes)``, as GEO-Bench's HDF5 attribute is; raises like load_pickle."""
    try:
        raw = ast.literal_eval(text) if isinstance(text, str) else text
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"its pickle attribute is damaged ({error})") from error
    if not isinstance(raw, bytes):
        raise ValueError("its pickle attribute does not hold bytes")  # noqa: TRY004 - the file's fault
    return load_pickle(raw)
