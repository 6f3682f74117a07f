"""Extraction end to end against the bare forward pass on the same tensors, already prepared."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from _common import interleaved, save

from embedcache.backbones._registry import get_backbone
from embedcache.backbones._weights import find_weights, load_backbone
from embedcache.datasets._registry import open_dataset
from embedcache.encoding import encode
from embedcache.extraction import extract
from embedcache.extraction_plan import ExtractOptions, plan_extraction
from embedcache.synthetic import make_scenes

ROWS = 32
CASES = (("prithvi_eo_v2_300", "both"), ("sam2_hiera_large", "both"), ("sam2_hiera_tiny", "pooled"))


def main() -> None:
    """Measure each case, several times in turns."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        dataset = make_scenes(root / "m-bench", train=ROWS, val=0, test=0)
        source = open_dataset(f"geobench:{dataset}")
        for name, what in CASES:
            options = ExtractOptions(weights="random", what=what, device="cpu", rebuild=True)
            plan = plan_extraction(source, name, root / "cache", options)
            spec = get_backbone(name)
            model = load_backbone(spec, find_weights(spec, "random"), plan.preprocessing.bands)
            # The very tensors that extraction will make, ready in memory before the clock starts.
            samples = [source.read(i, plan.preprocessing.source_bands) for i in plan.indices]
            batches = [
                plan.preprocessing(torch.stack([torch.from_numpy(s.image) for s in samples[i : i + plan.batch_size]]))
                for i in range(0, ROWS, plan.batch_size)
            ]
            encode(plan, model, samples[: plan.batch_size])  # warm up

            def bare(model=model, batches=batches) -> None:
                with torch.inference_mode():
                    for batch in batches:
                        model(batch)

            def whole(name=name, options=options, model=model) -> None:
                extract(plan_extraction(source, name, root / "cache", options), extractor=model)

            taken = interleaved({"bare": bare, "whole": whole}, repeats=3)
            ratio = taken["bare"] / taken["whole"]
            megabytes = ROWS * plan.spec.row_bytes / 1e6
            rows.append(
                (
                    name,
                    what,
                    plan.batch_size,
                    f"{ROWS / taken['bare']:.2f}",
                    f"{ROWS / taken['whole']:.2f}",
                    f"{ratio:.3f}",
                    f"{megabytes:.1f}",
                )
            )
    save(
        "extraction",
        "Extraction against the bare forward pass (CPU, fp32)",
        ("backbone", "features", "batch", "bare img/s", "extract img/s", "ratio", "MB written"),
        rows,
        [
            f"{ROWS} scenes of 64 px, 13 bands, read from HDF5; 224 px input. `extract` includes planning, decoding,",
            "preprocessing, the forward pass, the cast to float16 and durable writing; the model is loaded before.",
            "Medians of 3 runs of each, taken in turns. The target is a ratio of 0.95 for the two large backbones.",
        ],
    )
