"""Audits the images of an extraction, before the first forward pass.

A wrong scale or band order costs tens of points of accuracy and gives no error message. So statistics of a few images,
evenly spaced over the dataset, are compared with the units they are said to be in, with spectra that can exist, and
with what the backbone was trained on. An **error** stops the extraction unless it is accepted, a **warning** does not.
Both are kept in the store's attributes, and neither in its fingerprint: no byte of features depends on them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from embedcache.audit.checks import findings, model_statistics
from embedcache.audit.record import Audit, BandStatistics
from embedcache.audit.sample import ImageSample, read_sample
from embedcache.datasets._spec import SampleSource
from embedcache.preprocessing import Preprocessing


def audit_images(
    source: SampleSource,
    indices: Sequence[int],
    preprocessing: Preprocessing,
    absent: Collection[str] = (),
    *,
    accepted: bool = False,
) -> Audit:
    """Read a sample of images and judge them; the same images give the same answer every time.

    Parameters
    ----------
    source
        The dataset.
    indices
        Its samples that are to be encoded.
    preprocessing
        How the backbone's inputs are made of them.
    absent
        Bands that the backbone knows and the data lack.
    accepted
        Whether errors may pass.

    Raises
    ------
    SampleError
        If none of the chosen images can be read.
    """
    sample = read_sample(source, indices, preprocessing.source_bands)
    return Audit(
        images=sample.images,
        of=len(indices),
        units=source.info.units,
        bands={b: _statistics(sample, b, preprocessing) for b in sample.bands if sample[b].size},
        findings=findings(sample, source.info.units, preprocessing, absent),
        accepted=accepted,
    )


def _statistics(sample: ImageSample, band: str, preprocessing: Preprocessing) -> BandStatistics:
    values = sample[band]
    low, p1, median, p99, high = np.percentile(values, (0, 1, 50, 99, 100))
    given: tuple[float, ...] = ()
    if band in preprocessing.source_bands:
        given = model_statistics(sample, preprocessing, preprocessing.source_bands.index(band))
    numbers = [_short(v) for v in (low, p1, median, p99, high, values.mean(), values.std(), *given)]
    names = ("minimum", "p1", "median", "p99", "maximum", "mean", "std", "model_mean", "model_std")
    return BandStatistics(**dict(zip(names, numbers, strict=False)))


def _short(value: float) -> float:
    """Six digits: what is kept in a store must not depend on the order in which a machine adds."""
    return float(f"{value:.6g}")
