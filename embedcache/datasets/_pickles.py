"""Reads the pickles inside GEO-Bench files without trusting them.

A pickle is a program. GEO-Bench's name classes of ``geobench``, ``affine`` and ``rasterio``; here each becomes an
inert :class:`Stub` that keeps what the pickle says about it, a short list of harmless builders is allowed, and
anything else is refused before it runs.
"""

from __future__ import annotations

import ast
import io
import pickle
from typing import Any

_STUBBED = ("geobench.", "ccb.", "affine", "rasterio.")
_ALLOWED = {
    ("datetime", "date"),
    ("datetime", "datetime"),
    ("datetime", "timedelta"),
    ("collections", "OrderedDict"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")),
}


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


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith(_STUBBED) or module in {"affine", "geobench"}:
            return type(name, (Stub,), {"__module__": "embedcache.datasets._pickles"})
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")


def load_pickle(raw: bytes) -> Any:
    """Read a pickle; objects of unknown harmless classes come as :class:`Stub`.

    Raises
    ------
    ValueError
        If the pickle asks for anything that could run code, or is damaged.
    """
    try:
        return _Unpickler(io.BytesIO(raw)).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"its pickle is refused: {error}") from error


def load_attribute(text: Any) -> Any:
    """Read a pickle that was stored as ``str(bytes)``, as GEO-Bench's HDF5 attribute is; raises like load_pickle."""
    try:
        raw = ast.literal_eval(text) if isinstance(text, str) else bytes(text)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"its pickle attribute is damaged ({error})") from error
    if not isinstance(raw, bytes):
        raise ValueError("its pickle attribute does not hold bytes")  # noqa: TRY004 - the file's fault
    return load_pickle(raw)
