"""The whole linear protocol, 16 trials and 10 seeds, against the same runs one after the other."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from _common import save
from torch.utils.data import DataLoader, Dataset, TensorDataset

from embedcache.backbones._registry import get_backbone
from embedcache.backbones._weights import find_weights, load_backbone
from embedcache.evaluation.metrics import primary_scores
from embedcache.loading import PooledData, Vectors
from embedcache.train_config import Run, TrainConfig, default_batch_size
from embedcache.training import train

EPOCHS, TRIALS, SEEDS = 50, 16, 10
PER_FILE_EPOCHS = 1
OURS_EPOCHS = 5
"""Of the large sizes one epoch and one and so many more are run; the others cost what these do."""
SIZES = {
    "m-eurosat, 1024": (2000, 1000, 1024, 10, "classification"),
    "m-bigearthnet, 1024": (20000, 1000, 1024, 43, "multilabel"),
    "m-bigearthnet, 2176": (20000, 1000, 2176, 43, "multilabel"),
}
BACKBONES = ("prithvi_eo_v2_300_tl", "sam2_hiera_large")


def main() -> None:
    """Measure one pass of ours, and some epochs of each other way; epochs of one size take equally long."""
    rows = []
    ours = {}
    for name, (n, held_out, channels, classes, task) in SIZES.items():
        data = _data(n, held_out, channels, classes, task)
        here = _measure(name, data, n)
        ours[name] = float(here[0][2])
        rows += here
    save(
        "heads",
        "The linear protocol: 16 trials and 10 seeds of 50 epochs",
        ("size", "way", "seconds", "times ours"),
        rows,
        [
            "Training vectors in RAM, random numbers of the datasets' sizes; batch size as embedcache chooses it "
            "(32 for m-eurosat, 64 for m-bigearthnet), AdamW, validation after every epoch, test at the end. "
            "'Ours' is `embedcache.training.train` for two batches of 8 trials and one of 10 seeds, in full "
            "for m-eurosat, from 1 and 6 of the 50 epochs for m-bigearthnet. "
            "The others are timed over a few epochs of one run and multiplied up to 26 runs of 50 epochs: 'plain "
            "PyTorch' indexes tensors in RAM, `nn.Linear`, `torch.optim.AdamW`; 'DataLoader' is the same through "
            "`TensorDataset` and `DataLoader`; 'one .pt file per sample' loads each vector from its own file, as "
            "tools that keep embeddings as files do (page cache warm, two workers). bf16 is `--precision bf16`: "
            "products in bfloat16, weights in float32. 'The matrix products alone' are the two float32 products of "
            "every step, runs side by side, without reading, loss, optimizer or validation: what no way of training "
            "these heads in float32 can go below.",
            "With the frozen backbone in the loop, as fine-tuning tools train, every epoch of every run encodes the "
            "training split again. " + " ".join(_in_the_loop(name, ours["m-eurosat, 1024"]) for name in BACKBONES),
        ],
    )


def _in_the_loop(name: str, ours: float) -> str:
    """Measure the bare forward pass, and say what 26 runs with it in the loop would take."""
    spec = get_backbone(name)
    bands = tuple(b.name for b in spec.bands)
    model = load_backbone(spec, find_weights(spec, "random"), bands)
    images = torch.randn(4, len(bands), 224, 224)
    with torch.inference_mode():
        model(images)
        start = time.perf_counter()
        for _ in range(3):
            model(images)
    each = (time.perf_counter() - start) / 12
    whole = (TRIALS + SEEDS) * EPOCHS * 2000 * each
    return (
        f"{name} encodes {1 / each:.2f} images/s here (measured, 224 px, fp32): m-eurosat's 2000 images over 26 runs "
        f"of 50 epochs would take {whole / 86400:.0f} days, {whole / ours:,.0f} times ours; encoding them once takes "
        f"{2000 * each / 60:.0f} minutes."
    )


def _data(n: int, held_out: int, channels: int, classes: int, task: str) -> PooledData:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(channels, classes, generator=generator) / channels**0.5

    def split(rows: int) -> Vectors:
        x = torch.randn(rows, channels, generator=generator)
        logits = x @ truth + torch.randn(rows, classes, generator=generator)
        y = (logits > 1.8).float() if task == "multilabel" else logits.argmax(1)
        return Vectors.held(x, y, np.arange(rows).astype(str))

    return PooledData(split(n), split(held_out), split(held_out), task, classes)


def _measure(name: str, data: PooledData, n: int) -> list[tuple[str, str, str, str]]:
    whole = {
        "embedcache": _ours(data, "fp32"),
        "embedcache, bf16": _ours(data, "bf16"),
    }
    batch = default_batch_size(n, maps=False)
    scale = (TRIALS + SEEDS) * EPOCHS
    whole["the matrix products alone, stacked"] = scale * _products(data, batch)
    epochs = max(2, 20000 // n)
    whole["plain PyTorch, one run after the other"] = scale * _plain(data, _tensors(data, batch), epochs)
    loader = DataLoader(TensorDataset(data.train.x, data.train.y), batch_size=batch, shuffle=True)
    whole["plain PyTorch, DataLoader"] = scale * _plain(data, lambda _: iter(loader), max(1, epochs // 2))
    with tempfile.TemporaryDirectory() as folder:
        files = _files(Path(folder), data)
        loader = DataLoader(files, batch_size=batch, shuffle=True, num_workers=2)
        whole["one .pt file per sample, DataLoader"] = scale * _plain(data, lambda _: iter(loader), PER_FILE_EPOCHS)
    ours = whole["embedcache"]
    return [(name, way, f"{t:.1f}", f"{t / ours:.1f}") for way, t in whole.items()]


def _ours(data: PooledData, precision: Any) -> float:
    train(data, [Run(TrainConfig(epochs=1, precision=precision), 0)])  # warm
    if len(data.train) < 10000:
        return _protocol(data, EPOCHS, precision)
    one, some = _protocol(data, 1, precision), _protocol(data, 1 + OURS_EPOCHS, precision)
    return one + (EPOCHS - 1) * (some - one) / OURS_EPOCHS


def _protocol(data: PooledData, epochs: int, precision: Any) -> float:
    config = TrainConfig(epochs=epochs, precision=precision)
    start = time.perf_counter()
    rates = np.geomspace(1e-4, 1e-1, TRIALS)
    for half in (rates[:8], rates[8:]):
        train(data, [Run(config.with_(learning_rate=float(r)), 0) for r in half])
    train(data, [Run(config, seed) for seed in range(SEEDS)])
    return time.perf_counter() - start


def _products(data: PooledData, batch: int, runs: int = 8, repeats: int = 300) -> float:
    """Seconds that one run's share of the two products of a step takes, times the steps of an epoch.

    The bound of anything that computes in float32: no reading, loss, optimizer or validation.
    """
    x, weight = data.train.x[:batch], torch.randn(runs * data.num_classes, data.channels)
    slope, logits = torch.randn(batch, len(weight)), torch.empty(batch, len(weight))
    gradient = torch.empty_like(weight)
    for number in range(repeats + 10):
        if number == 10:
            start = time.perf_counter()
        torch.mm(x, weight.T, out=logits)
        torch.mm(slope.T, x, out=gradient)
    return (time.perf_counter() - start) / repeats / runs * -(-len(data.train) // batch)


def _tensors(data: PooledData, batch: int) -> Callable[[int], Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    def epoch(number: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for rows in torch.randperm(len(data.train)).split(batch):
            yield x[rows], data.train.y[rows]

    x = data.train.x
    return epoch


def _plain(data: PooledData, batches: Callable[[int], Iterator[Any]], epochs: int) -> float:
    """Seconds of one epoch with its validation, as anyone would write it."""
    head = torch.nn.Linear(data.channels, data.num_classes)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for x, _ in batches(0):  # warm
        head(x)
        break
    start = time.perf_counter()
    for number in range(epochs):
        for x, y in batches(number):
            logits = head(x)
            loss = (
                F.binary_cross_entropy_with_logits(logits, y)
                if data.task == "multilabel"
                else F.cross_entropy(logits, y)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.inference_mode():
            primary_scores(data.task, head(data.val.x).numpy()[None], data.val.y.numpy())
    return (time.perf_counter() - start) / epochs


class _files(Dataset[Any]):  # noqa: N801
    def __init__(self, folder: Path, data: PooledData) -> None:
        self.folder, self.n = folder, len(data.train)
        x = data.train.x
        for i in range(self.n):
            torch.save((x[i].clone(), data.train.y[i].clone()), folder / f"{i}.pt")

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        return torch.load(self.folder / f"{index}.pt", weights_only=True)


if __name__ == "__main__":
    main()
