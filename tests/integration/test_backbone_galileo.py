"""A user's plug-in with real pretrained weights: Galileo-nano, on real Sentinel-2 chips, through the command line."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from embedcache.backbones._registry import get_backbone
from embedcache.backbones._weights import find_weights, load_backbone, read_state
from embedcache_stores.feature_store import FeatureStore

pytestmark = pytest.mark.data

PLUGINS = Path(__file__).parent / "plugins"
REFERENCE = 0.835
"""Accuracy that SOURCES.md reports: five folds over 200 chips, of which 120 are here."""
BOUND = 0.07
"""Two standard errors of a share of 0.835 among 120: 2 * sqrt(0.835 * 0.165 / 120)."""
RANDOM = 0.665
"""What SOURCES.md reports for random weights."""
FILE_ORDER = "B01,B02,B03,B04,B05,B06,B07,B08,B09,B10,B11,B12,B8A"

Extract = Callable[[str], FeatureStore]


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(PLUGINS))
    return get_backbone("galileo_nano:SPEC")


@pytest.fixture(scope="module")
def published(real_data: Path) -> Path:
    path = real_data / "weights" / "galileo_nano" / "encoder.pt"
    if not path.is_file():
        pytest.skip(f"REAL WEIGHTS ARE MISSING, NOTHING GENUINE WAS READ: no {path}")
    return path


@pytest.fixture(scope="module")
def extract(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Extract:
    """Return ``extract(weights)``: the command line, with the plug-in's file in the working directory."""
    cache = tmp_path_factory.mktemp("galileo")

    def run(weights: str) -> FeatureStore:
        tag = Path(weights).stem.replace(":", "")
        command = ["extract", "--dataset", f"folder:{real_data / 'eurosat_ms'}", "--bands", FILE_ORDER, "--units", "dn"]
        command += ["--backbone", "galileo_nano:SPEC", "--weights", weights, "--dtype", "float32", "--what", "both"]
        subprocess.run(
            [sys.executable, "-m", "embedcache_cli", *command, "--cache", str(cache), "--tag", tag, "--device", "cpu"],
            cwd=PLUGINS,
            env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            check=True,
            timeout=300,
        )
        return FeatureStore(cache / "eurosat_ms" / f"galileo_nano@{tag}.zarr")

    return run


def probe(store: FeatureStore) -> float:
    """Accuracy of logistic regression on standardised vectors: mean of five folds, shuffled in five ways."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vectors: npt.NDArray[Any] = store.read("pooled_mean", np.arange(len(store.sample_ids)))
    labels = store.column("label")
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = [StratifiedKFold(5, shuffle=True, random_state=seed) for seed in range(5)]
    return float(np.mean([cross_val_score(head, vectors, labels, cv=fold) for fold in folds]))


def test_the_published_file_fills_the_model_and_nothing_is_left_over(spec: Any, published: Path) -> None:
    model = load_backbone(spec, find_weights(spec, str(published)), tuple(b.name for b in spec.bands))
    own, state = model.module.state_dict(), read_state(published)
    assert set(own) == set(state)
    assert all(torch.equal(own[k], state[k]) for k in own)
    assert sum(p.numel() for p in model.module.parameters()) == 1_037_856


def test_its_statistics_are_the_published_ones(spec: Any, published: Path) -> None:
    facts = json.loads((published.parent / "normalization.json").read_text())["13"]
    for i, band in enumerate(spec.bands, start=2):  # after the two of radar
        mean, std = facts["mean"][i], facts["std"][i]
        assert (band.mean, band.std) == (mean - 2 * std, 4 * std)
    assert (facts["mean"][12], facts["std"][12]) == importlib.import_module("galileo_nano").NDVI


def test_its_fixed_position_codes_are_those_of_the_published_file(spec: Any, published: Path) -> None:
    plugin, state = importlib.import_module("galileo_nano"), read_state(published)
    torch.testing.assert_close(plugin.build().pos_embed.detach(), state["pos_embed"], rtol=0, atol=1e-5)


def test_a_probe_reaches_the_reported_accuracy_and_random_weights_do_not(extract: Extract, published: Path) -> None:
    store = extract(str(published))
    assert len(store.sample_ids) == 120
    pretrained, random = probe(store), probe(extract("random:0"))
    print(f"probe on Galileo-nano {pretrained:.3f} (reported {REFERENCE}), random {random:.3f} (reported {RANDOM})")
    assert pretrained == pytest.approx(REFERENCE, abs=BOUND)
    assert random == pytest.approx(RANDOM, abs=0.09)
    assert pretrained > random + 0.1


def test_the_store_says_what_it_was_made_by(extract: Extract, published: Path) -> None:
    from embedcache_stores.manifest import read_manifest

    store = extract(str(published))
    manifest = read_manifest(store.place)
    made = manifest.provenance["backbone"]
    assert made["name"] == "galileo_nano"
    assert made["facts"]["version"] == "1"
    assert [b[0] for b in made["facts"]["bands"]][:3] == ["BLUE", "GREEN", "RED"]
    assert made["weights"]["kind"] == "file"
    assert manifest.attrs["backbone"]["reference"] == "galileo_nano:SPEC"
    assert store.spec("level_3").shape == (128, 8, 8)
