"""The input audit finds wrong scales, dead bands and exchanged bands, and is silent on images that are right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from embedcache.audit.auditing import audit_images
from embedcache.audit.record import Audit
from embedcache.backbones._registry import get_backbone
from embedcache.datasets._spec import DatasetInfo, OpenOptions, Sample
from embedcache.datasets.folder import FolderSource
from embedcache.errors import AuditError, SampleError
from embedcache.preprocessing import plan_preprocessing
from embedcache.synthetic import KEYS, make_scene

SIX = ("BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2")
SIX_OF_13 = [1, 2, 3, 8, 11, 12]
EUROSAT_FILE = "B01,B02,B03,B04,B05,B06,B07,B08,B09,B10,B11,B12,B8A"


class Memory:
    """A dataset in memory; see SampleSource."""

    def __init__(self, images: npt.NDArray[Any], bands: Sequence[str], units: Any) -> None:
        self.images = images
        self.info = DatasetInfo(
            name="m",
            task="classification",
            bands=tuple(bands),
            band_sources=tuple(bands),
            units=units,
            class_names=("a",),
        )
        self.sample_ids = [str(i) for i in range(len(images))]
        self.splits = ["train"] * len(images)

    def read(self, index: int, bands: Sequence[str]) -> Sample:
        image = self.images[index][[self.info.bands.index(b) for b in bands]]
        if np.isnan(image).any():
            raise SampleError(str(index), "it holds NaN pixels")
        return Sample(sample_id=str(index), image=image, target=0)

    def files(self, index: int) -> tuple[Path, ...]:
        return ()

    def revision(self, indices: Sequence[int]) -> dict[str, Any]:
        return {}


def audited(source: Any, backbone: str = "prithvi_eo_v2_300", **options: Any) -> Audit:
    spec = get_backbone(backbone)
    preprocessing, absent = plan_preprocessing(spec, source.info, 224)
    return audit_images(source, range(len(source.sample_ids)), preprocessing, absent, **options)


@pytest.fixture(scope="module")
def scenes() -> npt.NDArray[np.float64]:
    rng = np.random.default_rng(0)
    assert len(KEYS) == 13
    return np.stack([make_scene(i % 9, 32, rng)[SIX_OF_13] for i in range(36)]).astype(np.float64)


def test_plausible_scenes_pass_in_silence_and_the_same_way_every_time(scenes: npt.NDArray[np.float64]) -> None:
    source = Memory(scenes, SIX, "dn")
    audit = audited(source)
    assert audit.findings == ()
    assert (audit.images, audit.of) == (32, 36)
    assert audit == audited(source) == Audit.from_json(audit.to_json())
    exact = scenes[[i * 36 // 32 for i in range(32)], 3]
    assert audit.bands["NIR_NARROW"].median == np.median(exact)
    assert audit.bands["NIR_NARROW"].model_mean == pytest.approx((exact.mean() - 2734) / 1850, rel=1e-5)
    audit.refuse("m")


@pytest.mark.parametrize(
    ("gain", "units", "cause"),
    [
        (1e-4, "dn", "--units reflectance"),
        (1e-2, "dn", "percentage"),
        (1.0, "reflectance", "--units dn"),
        (1e-4, "uint8", "--units unit"),
        (1.0, "uint8", "--units dn"),
        (1.0, "unit", "--units dn"),
        (1e-8, "reflectance", "divided twice"),
    ],
)
def test_a_wrong_scale_is_an_error_that_says_the_likely_one(
    scenes: npt.NDArray[np.float64], gain: float, units: str, cause: str
) -> None:
    audit = audited(Memory(scenes * gain, SIX, units))
    assert [f.check for f in audit.errors] == ["units"]
    assert cause in audit.errors[0].message
    with pytest.raises(AuditError, match="--accept-audit"):
        audit.refuse("m")


def test_landsats_integers_and_eight_bit_pictures_are_told_apart(scenes: npt.NDArray[np.float64]) -> None:
    landsat = np.round((scenes / 1e4 + 0.2) / 0.0000275)
    assert "Landsat Collection 2" in audited(Memory(landsat, SIX, "dn")).errors[0].message
    picture = np.clip(scenes * 255 / 6000, 0, 255).astype(np.uint8)
    assert "--units uint8" in audited(Memory(picture, SIX, "dn")).errors[0].message
    assert audited(Memory(picture, SIX, "uint8")).errors == ()
    assert audited(Memory(scenes * 1e-4, SIX, "reflectance")).errors == ()


@pytest.mark.parametrize("pair", [("RED", "NIR_NARROW"), ("SWIR_1", "SWIR_2"), ("GREEN", "NIR_NARROW")])
def test_exchanged_bands_are_named(scenes: npt.NDArray[np.float64], pair: tuple[str, str]) -> None:
    a, b = (SIX.index(p) for p in pair)
    order = list(range(6))
    order[a], order[b] = b, a
    audit = audited(Memory(scenes[:, order], SIX, "dn"))
    assert "order" in {f.check for f in audit.errors}
    assert any(f"{pair[0]} and {pair[1]} exchanged" in f.message for f in audit.findings)


def test_dead_copied_and_filled_bands(scenes: npt.NDArray[np.float64]) -> None:
    dead = scenes.copy()
    dead[:, 4] = 0
    assert "band SWIR_1 is 0 everywhere in 32 images" in audited(Memory(dead, SIX, "dn")).errors[0].message
    copied = scenes.copy()
    copied[:, 5] = copied[:, 4]
    assert "SWIR_2 is a copy of band SWIR_1" in audited(Memory(copied, SIX, "dn")).errors[0].message
    filled = scenes.copy()
    filled[:, 3, :, :8] = -9999
    (error,) = audited(Memory(filled, SIX, "dn")).errors
    assert error.check == "nodata"
    assert "25%" in error.message
    bordered = scenes.copy()
    bordered[..., :16] = 0
    (warning,) = audited(Memory(bordered, SIX, "dn")).findings
    assert (warning.severity, warning.check) == ("warning", "nodata")


def test_an_eight_bit_layer_among_reflectances_is_found(scenes: npt.NDArray[np.float64]) -> None:
    mixed = scenes.copy()
    mixed[:, 4:] = np.clip(scenes[:, :2] / 12, 0, 255).round()
    audit = audited(Memory(mixed, SIX, "dn"))
    assert any(f.bands == ("SWIR_1", "SWIR_2") and "8-bit" in f.message for f in audit.errors)


def test_bands_that_the_backbone_does_not_read_only_warn(scenes: npt.NDArray[np.float64]) -> None:
    swapped = scenes[:, [0, 1, 2, 3, 5, 4]]
    audit = audited(Memory(swapped, SIX, "dn"), "sam2_hiera_tiny")
    assert audit.errors == ()
    assert any("SWIR_2" in f.bands for f in audit.warnings)


def test_unusable_images_are_counted_and_bands_that_are_not_read_may_be_unusable(
    scenes: npt.NDArray[np.float64],
) -> None:
    broken = scenes.copy()
    broken[0, 0, 0, 0] = np.nan
    audit = audited(Memory(broken, SIX, "dn"))
    assert audit.images == 31
    assert [f.check for f in audit.findings] == ["unreadable"]
    broken[:, 5] = np.nan
    with pytest.raises(SampleError):
        audited(Memory(broken, SIX, "dn"))
    assert audited(Memory(broken, SIX, "dn"), "sam2_hiera_tiny").images == 31


def test_errors_may_be_accepted(scenes: npt.NDArray[np.float64]) -> None:
    audit = audited(Memory(scenes * 1e-4, SIX, "dn"), accepted=True)
    audit.refuse("m")
    assert audit.to_json()["accepted"]
    assert "accepted" in audit.summary()


@pytest.mark.data
@pytest.mark.parametrize("backbone", ["prithvi_eo_v2_300", "sam2_hiera_large", "dofa_base"])
def test_genuine_images_pass(real_data: Path, backbone: str) -> None:
    water = "COASTAL_AEROSOL,BLUE,GREEN,RED,NIR,SWIR_1,SWIR_2,QA,DEM,DEM_2,COVER,WATER"
    sources: list[Any] = [
        FolderSource(real_data / "eurosat_ms", OpenOptions(bands=EUROSAT_FILE)),
        FolderSource(real_data / "water_ms", OpenOptions(bands=water, units="dn")),
        FolderSource(real_data / "eurosat_rgb", OpenOptions()),
    ]
    for source in sources:
        assert audited(source, backbone).errors == ()


@pytest.mark.data
def test_m_eurosat_as_published_is_found_in_genuine_pixels(real_data: Path) -> None:
    # GEO-Bench's names in the order of the files: B8A's place holds B09, and so on.
    published = "B01,B02,B03,B04,B05,B06,B07,B08,B8A,B09,B10,B11,B12"
    source = FolderSource(real_data / "eurosat_ms", OpenOptions(bands=published))
    audit = audited(source)
    assert any(set(f.bands) == {"SWIR_1", "SWIR_2"} for f in audit.errors)
    assert audited(source, "sam2_hiera_large").errors == ()
