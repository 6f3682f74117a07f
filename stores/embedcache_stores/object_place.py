"""Stores in a bucket (``s3://``, ``gs://``, ``az://``) or in memory, through obstore. Credentials: environment only."""

from __future__ import annotations

import errno
import json
import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any

from embedcache_stores.errors import StoreError, StoreLockedError, StoreUnreachableError
from embedcache_stores.place import LOCK_FILE, Lock, Place

SCHEMES = ("s3", "gs", "az", "memory")


class ObjectPlace(Place):
    """A prefix in an object store. One PUT is atomic there, so a file is whole or not there at all."""

    def __init__(self, url: str) -> None:
        """Name a place; nothing is requested.

        Raises
        ------
        StoreError
            If the URL has an unknown scheme or no bucket, or obstore is not installed.
        """
        self.url = url.rstrip("/")
        scheme, _, rest = self.url.partition("://")
        bucket, _, prefix = rest.partition("/")
        if scheme not in SCHEMES or not bucket:
            raise StoreError(
                f"{url!r} names no place for stores: use a local path, or s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, "
                "az://CONTAINER/PREFIX, memory://NAME."
            )
        self._store = _open_bucket(scheme, bucket)
        self._prefix = prefix

    @property
    def is_local(self) -> bool:
        """Whether files can be mapped into memory."""
        return False

    def child(self, key: str) -> ObjectPlace:
        """Return the place below this one."""
        return ObjectPlace(f"{self.url}/{key}")

    def found(self) -> bool:
        """Whether any key begins here."""
        import obstore

        with _explained():
            return any(True for page in obstore.list(self._store, self._key("") or None, chunk_size=1) for _ in page)

    def read(self, key: str) -> bytes:
        """Return an object's bytes."""
        import obstore

        with _explained():
            return bytes(obstore.get(self._store, self._key(key)).bytes())

    def size(self, key: str) -> int | None:
        """Bytes of an object; None where there is none."""
        import obstore

        with _explained():
            try:
                return int(obstore.head(self._store, self._key(key))["size"])
            except FileNotFoundError:
                return None

    def folders(self) -> list[str]:
        """Names below which there are keys, sorted."""
        return sorted(str(p).rpartition("/")[2] for p in self._listed("")["common_prefixes"])

    def files(self, folder: str = "") -> list[str]:
        """Names of objects directly in a folder, sorted."""
        return sorted(str(o["path"]).rpartition("/")[2] for o in self._listed(folder)["objects"])

    def write(self, key: str, *parts: Any) -> None:
        """PUT one object."""
        import obstore

        with _explained():
            obstore.put(self._store, self._key(key), b"".join(parts))

    def sync(self, folder: str = "") -> None:
        """Do nothing: a PUT that was answered is durable."""

    def remove(self, key: str) -> None:
        """Delete an object; nothing happens where there is none."""
        import obstore

        with _explained():
            try:
                obstore.delete(self._store, self._key(key))
            except FileNotFoundError:
                return

    def remove_folder(self, folder: str = "") -> None:
        """Delete every object below a prefix."""
        import obstore

        with _explained():
            paths = [o["path"] for page in obstore.list(self._store, self._key(folder) or None) for o in page]
            if paths:
                obstore.delete(self._store, paths)

    def append(self, log: str, number: int, line: bytes) -> None:
        """PUT the line as an object of its own: objects cannot grow."""
        self.write(f"{log}/{number:09d}", line)

    def lines(self, log: str) -> list[bytes] | None:
        """Lines in order; None where there is no log."""
        names = self.files(log)
        with ThreadPoolExecutor(16) as pool:  # each is a request
            return list(pool.map(lambda name: self.read(f"{log}/{name}"), names)) or None

    def replace_log(self, log: str, lines: Sequence[bytes]) -> None:
        """Write the lines; those beyond go first, so that a kill leaves a shorter log, never a mixed one."""
        self.remove_log(log)
        for number, line in enumerate(lines):
            self.append(log, number, line)

    def cut_log(self, log: str, count: int) -> None:
        """Delete the lines beyond."""
        for name in reversed(self.files(log)[count:]):
            self.remove(f"{log}/{name}")

    def remove_log(self, log: str) -> None:
        """Remove a log, its last line first."""
        for name in reversed(self.files(log)):
            self.remove(f"{log}/{name}")

    def lock(self, owner: str) -> Lock:
        """Create the lock object, which fails where there is one; one left by a dead process of this host is taken."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        key = self._key(LOCK_FILE)
        claim = {"owner": owner, "host": socket.gethostname(), "pid": os.getpid(), "token": uuid.uuid4().hex}
        raw = json.dumps(claim).encode()
        with _explained():
            try:
                obstore.put(self._store, key, raw, mode="create")
            except AlreadyExistsError as error:
                held = obstore.get(self._store, key)
                other = json.loads(bytes(held.bytes()))
                if _alive(other):
                    raise StoreLockedError(
                        f"store {self.url!r} is being written by {other['owner']}. Wait for it, or stop it and run "
                        "this command again; if that process is gone, 'embedcache gc --break-locks' removes its lock."
                    ) from error
                try:
                    obstore.put(self._store, key, raw, mode={"e_tag": held.meta["e_tag"]})
                except PreconditionError as late:
                    raise StoreLockedError(f"store {self.url!r} was just taken by another writer.") from late
        return _ObjectLock(self, raw)

    def is_locked(self) -> bool:
        """Whether there is a lock of a process that may be alive."""
        try:
            return _alive(json.loads(self.read(LOCK_FILE)))
        except FileNotFoundError:
            return False

    def zarr_store(self) -> tuple[Any, str]:
        """Return the bucket as zarr's object store, with the prefix."""
        from zarr.storage import ObjectStore

        return ObjectStore(self._store, read_only=True), self._prefix

    def _key(self, key: str) -> str:
        return f"{self._prefix}/{key}".strip("/")

    def _listed(self, folder: str) -> Any:
        import obstore

        with _explained():
            return obstore.list_with_delimiter(self._store, self._key(folder) or None)


class _ObjectLock:
    def __init__(self, place: ObjectPlace, claim: bytes) -> None:
        self._place, self._claim = place, claim

    def close(self) -> None:
        """Delete the lock, if it is still ours."""
        try:
            if self._place.read(LOCK_FILE) == self._claim:
                self._place.remove(LOCK_FILE)
        except FileNotFoundError:
            return


def _alive(claim: dict[str, Any]) -> bool:
    """Whether a lock's owner may be alive: unknown on other hosts."""
    if claim.get("host") != socket.gethostname():
        return True
    try:
        os.kill(int(claim["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _open_bucket(scheme: str, bucket: str) -> Any:
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise StoreError(
            f"{scheme}:// places need obstore, which is not installed; pip install 'embedcache[remote]'."
        ) from error
    if scheme == "memory":
        return _memory(bucket)
    plain: Any = {"allow_http": True} if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://") else {}
    retry: Any = {"max_retries": 5, "retry_timeout": _seconds(30)}
    try:
        return from_url(f"{scheme}://{bucket}", client_options=plain or None, retry_config=retry)
    except Exception as error:  # obstore's own kinds; such as an account that no variable names
        raise StoreError(
            f"{scheme}://{bucket} cannot be opened ({_first_line(error)}). Account, region and credentials are read "
            "from the environment: AWS_*, GOOGLE_*, AZURE_STORAGE_* (for az:// AZURE_STORAGE_ACCOUNT_NAME at least)."
        ) from error


def _seconds(count: int) -> Any:
    import datetime

    return datetime.timedelta(seconds=count)


@cache
def _memory(name: str) -> Any:
    """Objects of this process that live as long as it: what ``memory://NAME`` means."""
    from obstore.store import MemoryStore

    return MemoryStore()


@contextmanager
def _explained() -> Iterator[None]:
    """Turn obstore's refusals into our own, which are OSErrors as a disk's are."""
    from obstore import exceptions as refused

    try:
        yield
    except (refused.PermissionDeniedError, refused.UnauthenticatedError) as error:
        raise StoreUnreachableError(errno.EACCES, f"the object store refused it ({_first_line(error)})") from error
    except refused.AlreadyExistsError:
        raise
    except refused.BaseError as error:
        raise StoreUnreachableError(errno.EIO, f"the object store answered: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
