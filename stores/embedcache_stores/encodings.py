"""How float features lie in fewer bytes: float16, float32, bfloat16 bits, or int8 with a scale per channel.

``bfloat16``
    The upper half of a float32, kept as ``uint16`` because Zarr and numpy know no bfloat16. Same range as float32,
    three significant digits.
``int8``
    ``round(value / scale)`` in -127..127. One float32 scale per channel and row group (of all views), the channel's
    largest magnitude there divided by 127, so nothing ever saturates and no pass over the data comes first. -128 stands
    for NaN, the features of skipped rows.

Measured errors: ``docs/benchmarks/dtypes.md``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedcache_stores.schema import ArraySpec, Encoding

DTYPES: Final[dict[str, tuple[str, Encoding | None]]] = {
    "float16": ("float16", None),
    "bfloat16": ("uint16", "bfloat16"),
    "float32": ("float32", None),
    "int8": ("int8", "int8"),
}
"""What ``--dtype`` may be: the dtype on disk, and the encoding."""
_INT8_NAN: Final = -128
FLOAT16_MOST: Final = 65504.0


@dataclass(frozen=True)
class Encoded:
    """Rows of one array as they lie on disk."""

    data: npt.NDArray[Any]
    scale: npt.NDArray[np.float32] | None = None
    """``(channel,)`` of an int8 row group."""
    saturated: int = 0
    """Values beyond the dtype's range that were cut to its largest."""


def encode(values: npt.NDArray[Any] | Encoded, spec: ArraySpec) -> Encoded:
    """Encode one row group of an array.

    Parameters
    ----------
    values
        ``(rows, *shape)``, already in the dtype on disk, or float32 to be converted. int8 wants float32 of the whole
        row group. What is :class:`Encoded` already is returned as it is.

    Raises
    ------
    ValueError
        If the dtype is neither.
    """
    if isinstance(values, Encoded):
        return values
    if spec.encoding == "int8":
        if values.dtype != np.float32:
            raise ValueError(f"array {spec.name!r} must have dtype float32 to be stored as int8, got {values.dtype}")
        return _to_int8(values, values.ndim - len(spec.shape))
    if values.dtype == np.dtype(spec.dtype):
        return Encoded(values)
    if values.dtype != np.float32:
        raise ValueError(f"array {spec.name!r} must have dtype {spec.dtype}, got {values.dtype}")
    if spec.encoding == "bfloat16":
        return Encoded(_to_bfloat16(values))
    if spec.dtype == "float16":
        beyond = np.isfinite(values) & (np.abs(values) > FLOAT16_MOST)
        saturated = int(beyond.sum())
        if saturated:
            values = np.where(beyond, np.copysign(np.float32(FLOAT16_MOST), values), values)
        return Encoded(values.astype(np.float16), saturated=saturated)
    raise ValueError(f"array {spec.name!r} must have dtype {spec.dtype}, got {values.dtype}")


def decode(data: npt.NDArray[Any], spec: ArraySpec, scale: npt.NDArray[np.float32] | None = None) -> npt.NDArray[Any]:
    """Return the values of stored rows: float32 where they were encoded, else the data itself.

    Parameters
    ----------
    data
        As on disk: ``(rows, *shape)`` of one view, or ``(rows, view, *shape)``.
    scale
        For int8: ``(rows, channel)``, or ``(channel,)`` where the rows share a row group.
    """
    if spec.encoding == "bfloat16":
        return (data.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if spec.encoding == "int8":
        if scale is None:
            raise ValueError(f"array {spec.name!r} is stored as int8 and needs its scale")
        if data.ndim > 1 + len(spec.shape):  # a channel's scale is that of all its views
            scale = scale[..., None, :]
        wide = scale.reshape(*scale.shape, *(1 for _ in spec.shape[1:]))
        out: npt.NDArray[Any] = data.astype(np.float32) * wide
        out[data == _INT8_NAN] = np.nan
        return out
    return data


def max_abs(values: npt.NDArray[Any]) -> float:
    """Largest finite magnitude; 0 where there is none."""
    if values.dtype in {np.dtype(np.float16), np.dtype(np.float32)} and values.flags.c_contiguous:
        bits = values.view(f"uint{8 * values.itemsize}")  # without its sign, a float orders like its bits
        sign = bits.dtype.type(1 << (8 * values.itemsize - 1))
        most = (bits & ~sign).max(initial=0).view(values.dtype)
        if np.isfinite(most):
            return float(most)
    finite = np.abs(values[np.isfinite(values)].astype(np.float64))
    return float(finite.max(initial=0.0))


def _to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round to nearest, ties to even, as torch does; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _to_int8(values: npt.NDArray[np.float32], channel: int) -> Encoded:
    """Encode a row group; ``channel`` is the axis of channels."""
    others = tuple(i for i in range(values.ndim) if i != channel)
    with np.errstate(invalid="ignore"):
        most = np.fmax.reduce(np.abs(values), axis=others, initial=0.0)
    scale = (most / np.float32(127)).astype(np.float32)
    scale[scale == 0] = 1.0  # a channel of zeros, or too small for a float32 scale
    wide = scale.reshape(-1, *(1 for _ in values.shape[channel + 1 :]))
    lost = np.isnan(values)
    codes = np.clip(np.rint(np.where(lost, 0, values) / wide), -127, 127).astype(np.int8)
    codes[lost] = _INT8_NAN
    return Encoded(codes, scale)
