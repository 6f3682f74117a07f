"""UPerNet from the cache: an epoch against the decoder's own arithmetic, and what makes that arithmetic cheaper."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from _common import interleaved, save
from torch.utils.flop_counter import FlopCounterMode

from embedcache.dense_data import DenseData
from embedcache.ensemble import Ensemble
from embedcache.heads import _reordered, upernet
from embedcache.heads._registry import get_head
from embedcache.train_config import Run, TrainConfig
from embedcache.training import load_data, train
from embedcache_stores import ArraySpec, FeatureStore, FeatureWriter, LevelSpec, StoreSpec
from embedcache_stores.schema import level_arrays

ROWS, BATCH, CLASSES, SIZE = 32, 8, 7, 224
HIERA_L = [(144, 56), (288, 28), (576, 14), (1152, 7)]
PRITHVI_300 = [(1024, 14)] * 4
GFLOP = {"sam2_hiera_large": 88.4, "prithvi_eo_v2_300": 123.4}
"""Of one image's forward pass through the backbone at 224 px (counted, see the design's fact sheet)."""


def main() -> None:
    """Measure with streaming from disk, then the ways to run the decoder."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "m-bench"
        hiera, prithvi = _store(root / "hiera.zarr", HIERA_L), _store(root / "prithvi.zarr", PRITHVI_300)
        rows = []
        for name, members, backbone in (
            ("Hiera-L", [hiera], GFLOP["sam2_hiera_large"]),
            ("Prithvi-300M", [prithvi], GFLOP["prithvi_eo_v2_300"]),
            ("both", [hiera, prithvi], sum(GFLOP.values())),
        ):
            rows += _measure(name, Ensemble(members), backbone)
    save(
        "decoders",
        "UPerNet with 256 channels, trained from the cache",
        ("features", "what", "figure"),
        rows,
        [
            f"{ROWS} training samples at {SIZE} px, {CLASSES} classes, batches of {BATCH}, random features in "
            "float16, fp32 arithmetic. 'Epoch' is forward, loss, backward and AdamW over all of them, streamed "
            "from disk (page cache warm), against the same steps on one batch that is in memory already. 'Plain' "
            "is TerraTorch's order of operations, 'reordered' the exact rearrangement of `heads/_reordered.py`. "
            "The bound is what a cache can win at most by leaving the frozen backbone out: (backbone forward + "
            "decoder) / decoder, in GFLOP.",
        ],
    )


def _store(path: Path, grids: list[tuple[int, int]]) -> FeatureStore:
    rng = np.random.default_rng(0)
    count = ROWS + 4
    levels = [LevelSpec(index=i, channels=c, reduction=SIZE / g, height=g, width=g) for i, (c, g) in enumerate(grids)]
    spec = StoreSpec(
        sample_ids=tuple(f"s{i}" for i in range(count)),
        arrays=(
            *level_arrays(levels, "float16"),
            ArraySpec(name="mask", dims=("y", "x"), shape=(SIZE, SIZE), dtype="int16"),
        ),
        columns=(ArraySpec(name="split", dtype="string"),),
        provenance={"backbone": {"name": path.stem, "weights": {"kind": "random"}}, "dataset": {}},
        rows_per_group=16,
        attrs={
            "task": "segmentation",
            "class_names": [f"c{i}" for i in range(CLASSES)],
            "levels": [x.to_json() for x in levels],
        },
    )
    split = np.array(["train"] * ROWS + ["val", "val", "test", "test"], dtype=object)
    with FeatureWriter(path, spec) as writer:
        for group in writer.missing:
            here = spec.group_rows(group)
            n = here.stop - here.start
            parts: dict[str, Any] = {
                x.name: rng.standard_normal((n, x.channels, x.height, x.width), dtype=np.float32).astype(np.float16)
                for x in levels
            }
            parts["mask"] = rng.integers(0, CLASSES, (n, SIZE, SIZE)).astype(np.int16)
            writer.write_group(group, parts, {"split": split[here]})
        writer.commit()
    return FeatureStore(path)


def _measure(name: str, view: Ensemble, backbone_gflop: float) -> list[tuple[str, str, str]]:
    config = TrainConfig(head="upernet", epochs=1, batch_size=BATCH)
    data = load_data(view, config, budget_bytes=0)
    assert isinstance(data, DenseData)
    maps, target = _one_batch(data)
    head = _head(data, config)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, fused=True)
    counter = FlopCounterMode(display=False)
    with counter:
        _step(head, optimizer, maps, target)
    counted = counter.get_total_flops() / BATCH / 1e9
    taken = interleaved(
        {
            "steps": lambda: [_step(head, optimizer, maps, target) for _ in range(ROWS // BATCH)],
            "epoch": lambda: _epoch(data, head, optimizer),
        },
        3,
    )
    ways = interleaved(
        {
            "plain": lambda: _plain_step(head, optimizer, maps, target),
            "reordered": lambda: _step(head, optimizer, maps, target),
            "reordered, bf16": lambda: _bf16_step(head, optimizer, maps, target),
        },
        3,
    )
    whole = time.perf_counter()
    train(data, [Run(config, 0)])
    whole = time.perf_counter() - whole
    bound = (backbone_gflop + counted) / counted
    return [
        (name, "decoder, forward and backward", f"{counted:.1f} GFLOP an image"),
        (name, "epoch from disk / steps on a batch in memory", f"{taken['epoch'] / taken['steps']:.3f}"),
        (name, "the whole of train(), with validation and test, per epoch", f"{whole:.1f} s"),
        (name, "plain / reordered, fp32", f"{ways['plain'] / ways['reordered']:.2f}"),
        (name, "plain fp32 / reordered bf16", f"{ways['plain'] / ways['reordered, bf16']:.2f}"),
        (name, "bound of caching, in arithmetic", f"{bound:.1f}"),
    ]


def _head(data: DenseData, config: TrainConfig) -> torch.nn.Module:
    spec = get_head("upernet")
    assert spec.decode is not None
    return spec.decode(data.members, CLASSES, torch.Generator().manual_seed(0), config).train()


def _one_batch(data: DenseData) -> tuple[Any, torch.Tensor]:
    batch = next(iter(data.loader("train").epoch(0)))
    assert batch.y is not None
    return [[x.clone() for x in member] for member in data.maps(batch)], batch.y.long().clone()


def _step(head: torch.nn.Module, optimizer: torch.optim.Optimizer, maps: Any, target: torch.Tensor) -> None:
    logits = F.interpolate(head(maps).float(), size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    optimizer.zero_grad()
    F.cross_entropy(logits, target).backward()
    optimizer.step()


def _bf16_step(head: torch.nn.Module, optimizer: torch.optim.Optimizer, maps: Any, target: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = head(maps)
    logits = F.interpolate(logits.float(), size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    optimizer.zero_grad()
    F.cross_entropy(logits, target).backward()
    optimizer.step()


def _plain_step(head: torch.nn.Module, optimizer: torch.optim.Optimizer, maps: Any, target: torch.Tensor) -> None:
    """The same with TerraTorch's order: enlarge every level, then convolve."""

    def direct(x: torch.Tensor, weight: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        big = F.interpolate(x, size=grid, mode="bilinear", align_corners=True)
        return F.conv2d(big, weight, padding=1)

    upernet.conv_of_resized = direct
    try:
        _step(head, optimizer, maps, target)
    finally:
        upernet.conv_of_resized = _reordered.conv_of_resized


def _epoch(data: DenseData, head: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for batch in data.loader("train", shuffle=True).epoch(0):
        assert batch.y is not None
        _step(head, optimizer, data.maps(batch), batch.y.long())


if __name__ == "__main__":
    main()
