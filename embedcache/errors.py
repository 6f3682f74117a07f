"""Errors of the library, one sentence each: what was asked, what was found, what to do.

All derive from :class:`embedcache_stores.errors.EmbedcacheError`; the tree for stores is drawn there.

    EmbedcacheError
    ├── UnknownNameError  (LookupError) no backbone, dataset or head of that name; near matches are in the sentence
    ├── SettingError      (ValueError)  an option's value, or two options together, make no sense
    ├── BandError         (ValueError)  bands that a backbone needs are not in the data, or are wrongly named
    ├── WeightsError      (ValueError)  weights that cannot be had, read, or do not fit the backbone
    ├── DatasetError      (ValueError)  a dataset's folder, table or labels are not what they should be
    ├── SampleError       (ValueError)  one image is unreadable, truncated or holds NaN; carries ``sample_id``
    ├── AuditError        (ValueError)  images are not what their units, bands and the backbone call for; ``findings``
    └── FeatureError      (ValueError)  features that are not finite, or overflow the stored dtype
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from embedcache_stores.errors import EmbedcacheError

__all__ = [
    "AuditError",
    "BandError",
    "DatasetError",
    "EmbedcacheError",
    "FeatureError",
    "SampleError",
    "SettingError",
    "UnknownNameError",
    "WeightsError",
    "unknown_name",
]


class UnknownNameError(EmbedcacheError, LookupError):
    """Nothing is registered under that name."""


class SettingError(EmbedcacheError, ValueError):
    """An option's value, or two options together, make no sense."""


class BandError(EmbedcacheError, ValueError):
    """Bands that a backbone needs are missing, or wrongly named."""


class WeightsError(EmbedcacheError, ValueError):
    """Weights that cannot be had, cannot be read, or do not fit."""


class DatasetError(EmbedcacheError, ValueError):
    """A dataset's folder, table or labels are not what they should be."""


class SampleError(EmbedcacheError, ValueError):
    """One sample cannot be used.

    Attributes
    ----------
    sample_id : str
        Which one.
    reason : str
        Why, in a few words.
    """

    def __init__(self, sample_id: str, reason: str) -> None:
        super().__init__(
            f"sample {sample_id!r} cannot be used: {reason}. Mend or remove it, or run with --skip-bad, which records "
            "it and goes on."
        )
        self.sample_id = sample_id
        self.reason = reason


class AuditError(EmbedcacheError, ValueError):
    """Images are not what their units, their bands' names and the backbone call for.

    Attributes
    ----------
    findings : Sequence
        The :class:`embedcache.audit.record.Finding` that are errors.
    """

    def __init__(self, message: str, findings: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


class FeatureError(EmbedcacheError, ValueError):
    """Features that are not finite, or do not fit the dtype they are stored in."""


def unknown_name(kind: str, name: str, known: Iterable[str], hint: str) -> UnknownNameError:
    """Build the error for a name that is not registered, with near matches and where to look."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    guess = f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else "."
    return UnknownNameError(f"{kind} {name!r} is not known{guess} {hint}")
