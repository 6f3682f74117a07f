"""Writes a store slowly enough to be killed: ``python writer_process.py PATH``. Equal content every time."""

import sys

import numpy as np

from embedcache_stores import ArraySpec, FeatureWriter, StoreSpec

ROWS, GROUP = 160, 4
SPEC = StoreSpec(
    sample_ids=tuple(f"s{i}" for i in range(ROWS)),
    arrays=(
        ArraySpec(name="pooled_mean", dims=("channel",), shape=(64,)),
        ArraySpec(name="level_0", dims=("channel_0", "y_0", "x_0"), shape=(32, 28, 28)),
    ),
    columns=(ArraySpec(name="split", dtype="string"),),
    provenance={"a": 1},
    rows_per_group=GROUP,
)


def content(group: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(group)
    arrays = {a.name: rng.normal(size=(GROUP, *a.shape)).astype("float16") for a in SPEC.arrays}
    return arrays, {"split": np.array(["train"] * GROUP, dtype=object)}


if __name__ == "__main__":
    with FeatureWriter(sys.argv[1], SPEC) as writer:
        print("ready", flush=True)
        for missing in writer.missing:
            writer.write_group(missing, *content(missing))
        writer.commit()
