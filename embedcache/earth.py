"""Where samples lie on the Earth: distances, blocks of about equal area, and regions."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from embedcache.errors import SettingError

EARTH_RADIUS_KM: Final = 6371.0088
"""Mean radius (IUGG); distances are along great circles of that sphere."""
_KM_PER_DEGREE: Final = EARTH_RADIUS_KM * np.pi / 180

Degrees = npt.NDArray[np.float64]


def unit_vectors(lat: Degrees, lon: Degrees) -> npt.NDArray[np.float64]:
    """Return points on the unit sphere, ``(n, 3)``, of latitudes and longitudes in degrees."""
    phi, theta = np.radians(lat), np.radians(lon)
    return np.stack([np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)], axis=-1)


def nearest_km(
    lat: Degrees, lon: Degrees, other_lat: Degrees, other_lon: Degrees, *, same: bool = False
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the great-circle distance in km from each point to the nearest of others, and which that is.

    Parameters
    ----------
    lat, lon, other_lat, other_lon
        Degrees, ``(n,)`` and ``(m,)``.
    same
        The others are the points themselves; a point is then not its own neighbour.
    """
    from scipy.spatial import cKDTree

    tree = cKDTree(unit_vectors(other_lat, other_lon))
    points = unit_vectors(lat, lon)
    if not same:
        chord, at = tree.query(points)
        return _arc_km(chord), at.astype(np.int64)
    chord, at = tree.query(points, k=2)
    own = at[:, 0] == np.arange(len(points))  # of points at one place, either may come first
    column = np.where(own, 1, 0)
    rows = np.arange(len(points))
    return _arc_km(chord[rows, column]), at[rows, column].astype(np.int64)


def _arc_km(chord: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    arcs: npt.NDArray[np.float64] = 2 * EARTH_RADIUS_KM * np.arcsin(np.clip(chord / 2, 0, 1))
    return arcs


def blocks(lat: Degrees, lon: Degrees, size_km: float) -> npt.NDArray[np.int64]:
    """Return the number of the block that each point lies in, from 0, ``(n,)``.

    Blocks are ``size_km`` high; each band of latitude is cut into whole blocks nearest to that width at its middle.

    Raises
    ------
    SettingError
        If the size is not a positive number of km.
    """
    if not 0 < size_km < 20_000:
        raise SettingError(f"a block must be larger than 0 and smaller than 20000 km, got {size_km}.")
    bands = max(1, round(180 * _KM_PER_DEGREE / size_km))
    height = 180 / bands
    row = np.clip(np.floor((lat + 90) / height), 0, bands - 1)
    around = np.cos(np.radians((row + 0.5) * height - 90)) * 360 * _KM_PER_DEGREE
    columns = np.maximum(1, np.round(around / size_km))
    column = np.clip(np.floor((lon + 180) % 360 / 360 * columns), 0, columns - 1)
    _, number = np.unique(np.stack([row, column], axis=1), axis=0, return_inverse=True)
    return number.reshape(-1).astype(np.int64)


def grid_regions(lat: Degrees, lon: Degrees, degrees: float) -> npt.NDArray[Any]:
    """Name the cell of a grid of so many degrees that each point lies in by its south-western corner: ``N40E010``.

    Raises
    ------
    SettingError
        If the size makes no sense.
    """
    if not 0 < degrees <= 180:
        raise SettingError(f"a grid of regions needs cells of more than 0 and at most 180 degrees, got {degrees:g}.")
    south, west = np.floor(lat / degrees) * degrees, np.floor(lon / degrees) * degrees
    return np.array(
        [
            f"{'S' if a < 0 else 'N'}{abs(a):02g}{'W' if b < 0 else 'E'}{abs(b):03g}"
            for a, b in zip(south, west, strict=True)
        ],
        dtype=object,
    )


def kmeans_regions(lat: Degrees, lon: Degrees, count: int, seed: int) -> npt.NDArray[Any]:
    """Name the k-means cluster of each point on the sphere, ``region-0`` (westernmost centre) and so on.

    Raises
    ------
    SettingError
        If there are fewer places than clusters.
    """
    from sklearn.cluster import KMeans

    points = unit_vectors(lat, lon)
    places = len(np.unique(points.round(9), axis=0))
    if not 2 <= count <= places:
        raise SettingError(f"k-means makes 2 to {places} regions of {places} different places, not {count}.")
    fitted = KMeans(count, n_init=10, random_state=seed).fit(points)
    centre = fitted.cluster_centers_
    order = np.argsort(np.arctan2(centre[:, 1], centre[:, 0]), kind="stable")
    rank = np.empty(count, dtype=np.int64)
    rank[order] = np.arange(count)
    width = len(str(count - 1))
    return np.array([f"region-{rank[c]:0{width}d}" for c in fitted.labels_], dtype=object)
