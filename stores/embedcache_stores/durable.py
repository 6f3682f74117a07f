"""Small file operations that survive a power cut."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedcache_stores.errors import StoreError, StoreUnreachableError, StoreWriteError


def fsync_path(path: Path) -> None:
    """Force a file's bytes, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_atomically(path: Path, text: str) -> None:
    """Write a small file so that readers see the old content or the new, never a part; of several writers, one wins."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.partial")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    fsync_path(path.parent)


@contextmanager
def explained_writes(where: object) -> Iterator[None]:
    """Turn the file system's refusals into a sentence that says what happened and that nothing is lost."""
    try:
        yield
    except StoreUnreachableError as error:
        raise _refusal(where, error) from error
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise _refusal(where, error) from error


def _refusal(where: object, error: OSError) -> StoreWriteError:
    reason = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "permission was denied",
        errno.EFBIG: "the file size limit was reached",
    }.get(error.errno or 0, error.strerror or str(error))
    return StoreWriteError(
        f"could not write {str(where)!r}: {reason}. The row groups written so far are kept; "
        "make room (or fix the permission) and run the same command again to continue."
    )
