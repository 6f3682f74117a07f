"""Writes a store slowly enough to be killed: ``python writer_process.py PATH``. Equal content every time.

With ``random-kills PATH COUNT SEED`` it is killed at COUNT random instants, each time in a fork that continues what the
one before it left, again and again from the beginning; it prints a line for each kill and whether the store was whole.

With ``every-operation FOLDER`` it writes a smaller store again and again into ``FOLDER/<n>.zarr``, each time in a fork
that kills itself with SIGKILL just before its n-th operation on files, until one fork comes to its end; it prints how
many were killed.
"""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from embedcache_stores import ArraySpec, FeatureWriter, StoreSpec

OPERATIONS = frozenset({"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.truncate"})


def make_spec(rows: int, rows_per_group: int, map_size: int) -> StoreSpec:
    return StoreSpec(
        sample_ids=tuple(f"s{i}" for i in range(rows)),
        arrays=(
            ArraySpec(name="pooled_mean", dims=("channel",), shape=(64,)),
            ArraySpec(name="level_0", dims=("channel_0", "y_0", "x_0"), shape=(32, map_size, map_size)),
        ),
        columns=(ArraySpec(name="split", dtype="string"),),
        provenance={"a": 1},
        rows_per_group=rows_per_group,
        attrs={"title": "killed"},  # otherwise the title is the folder's name, and no two folders are equal
    )


SPEC = make_spec(160, 4, 28)
TINY = make_spec(7, 4, 2)


def content(group: int, spec: StoreSpec = SPEC) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(group)
    rows = spec.group_rows(group)
    count = rows.stop - rows.start
    arrays = {a.name: rng.normal(size=(count, *a.shape)).astype("float16") for a in spec.arrays}
    return arrays, {"split": np.array([("train", "val", "test")[i % 3] for i in range(count)], dtype=object)}


def write(path: str | Path, spec: StoreSpec = SPEC) -> None:
    with FeatureWriter(path, spec) as writer:
        print("ready", flush=True)
        for missing in writer.missing:
            writer.write_group(missing, *content(missing, spec))
        writer.commit()


def die_before_operation(number: int, path: Path) -> None:
    """Kill this very process just before its n-th operation on a file or folder of the store."""
    seen = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event in OPERATIONS and str(arguments[0]).startswith(str(path)):
            seen += 1
            if seen == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def killed_before_every_operation(folder: Path) -> int:
    """Write one store per operation, and return how many writers were killed before one came to its end."""
    number = 0
    while True:
        number += 1
        path = folder / f"{number}.zarr"
        child = os.fork()
        if child == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                die_before_operation(number, path)
                write(path, TINY)
            except BaseException:
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code == 0:
            return number - 1
        if code != -signal.SIGKILL:
            raise RuntimeError(f"writer {number} was not killed, it failed with {code}")


def killed_at_random(path: Path, count: int, seed: int) -> None:
    """Kill writers of one store at random instants; a store that was committed is left, and the next one begun."""
    rng = np.random.default_rng(seed)
    start = time.monotonic()
    write(path / "timing.zarr")
    took = time.monotonic() - start
    number, kills = 0, 0
    while kills < count:
        store = path / f"{number}.zarr"
        child = os.fork()
        if child == 0:
            try:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                write(store)
            except BaseException:
                os._exit(1)
            os._exit(0)
        time.sleep(float(rng.uniform(0, 0.4 * took)))
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code not in {0, -signal.SIGKILL}:
            raise RuntimeError(f"the writer failed with {code}")
        kills += code == -signal.SIGKILL
        print("killed" if code else "ended", store, flush=True)
        sys.stdin.readline()  # until the test has looked at what is there
        number += (store / "zarr.json").exists()


if __name__ == "__main__":
    if sys.argv[1] == "random-kills":
        killed_at_random(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    elif sys.argv[1] == "every-operation":
        print(killed_before_every_operation(Path(sys.argv[2])))
    else:
        write(sys.argv[1])
