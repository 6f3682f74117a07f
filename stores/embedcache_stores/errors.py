"""Everything that embedcache raises on purpose.

EmbedcacheError                 one clear sentence for the user; the command line prints it and exits with 1
├── StoreError                  something about a feature store on disk
│   ├── StoreNotFoundError      (FileNotFoundError) nothing there
│   ├── NotAStoreError          (ValueError) something is there, but embedcache did not write it
│   ├── DamagedStoreError       (ValueError) a file of a committed store is lost, cut short or has a wrong checksum
│   ├── IncompleteStoreError    extraction began and was never committed
│   ├── FingerprintMismatchError (ValueError) a store made from other inputs is in the way
│   ├── SampleIdMismatchError   (ValueError) stores that should hold the same samples do not
│   ├── SaturatedError          (ValueError) too many values are beyond what their dtype holds
│   ├── StoreChangedError       the store was written anew, or removed, since it was opened
│   ├── StoreLockedError        another process is writing it
│   ├── StoreUnreachableError   (OSError) the object store refused or did not answer
│   └── StoreWriteError         (OSError) the disk refused: full, read-only, gone
└── (embedcache.errors)         bad names, bands, weights, images, settings
"""

from __future__ import annotations

from collections.abc import Sequence


class EmbedcacheError(Exception):
    """Base of every error with a sentence meant for the user."""


class StoreError(EmbedcacheError):
    """Something is wrong with a feature store."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """No feature store is at the path."""


class NotAStoreError(StoreError, ValueError):
    """The path holds something that embedcache did not write."""


class DamagedStoreError(StoreError, ValueError):
    """A committed store is not what was written: a file is lost, cut short, or its checksum is wrong.

    Attributes
    ----------
    problem : str
        What is wrong, in a few words.
    """

    def __init__(self, file: str, rows: str, problem: str) -> None:
        super().__init__(
            f"{file!r}{f' ({rows})' if rows else ''} {problem}; 'embedcache verify --repair' lets extract make it anew."
        )
        self.problem = problem


class IncompleteStoreError(StoreError):
    """The store was begun but not committed: readers must not use it."""


class FingerprintMismatchError(StoreError, ValueError):
    """A store made from other inputs is at the path.

    Attributes
    ----------
    differences : list of (field, stored value, asked value)
        Every field of the provenance that differs, as dotted names.
    """

    def __init__(self, message: str, differences: Sequence[tuple[str, object, object]]) -> None:
        super().__init__(message)
        self.differences = list(differences)


class SampleIdMismatchError(StoreError, ValueError):
    """Stores that must hold the same samples in the same order do not."""


class StoreChangedError(StoreError):
    """The store was written anew, or removed, since it was opened."""


class SaturatedError(StoreError, ValueError):
    """More values than allowed are beyond what their dtype holds."""


class StoreLockedError(StoreError):
    """Another process is writing this store."""


class StoreUnreachableError(StoreError, OSError):
    """The object store refused a request, or could not be reached."""

    def __str__(self) -> str:
        return f"{self.strerror}. Are the address and the credentials in the environment right?"


class StoreWriteError(StoreError, OSError):
    """The file system refused a write; what was durable before still is."""
