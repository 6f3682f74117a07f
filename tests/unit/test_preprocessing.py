"""From file values to model inputs, against plain numpy and Pillow."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from embedcache.backbones._registry import get_backbone
from embedcache.backbones._spec import BackboneSpec, BandInput
from embedcache.datasets._spec import DatasetInfo, Units
from embedcache.errors import BandError
from embedcache.preprocessing import Preprocessing, plan_preprocessing, resize_mask

BANDS = ("RED", "NIR_NARROW", "SWIR_1")


def recipe(input_size: int = 8, **changes: Any) -> Preprocessing:
    base = Preprocessing(
        bands=BANDS,
        source_bands=BANDS,
        gain=(0.085, 0.5, 1.0),
        ceiling=(255.0, None, 700.0),
        mean=(110.0, -3.0, 20.5),
        std=(75.0, 2.0, 0.25),
        input_size=input_size,
    )
    return replace(base, **changes)


def by_numpy(recipe: Preprocessing, images: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    out = np.empty(images.shape)
    for b in range(images.shape[1]):
        value = images[:, b].astype(np.float64) * recipe.gain[b]
        ceiling = recipe.ceiling[b]
        if ceiling is not None:
            value = np.clip(value, 0, ceiling)
        out[:, b] = (value - recipe.mean[b]) / recipe.std[b]
    return out


def dataset(bands: tuple[str, ...], units: Units = "dn") -> DatasetInfo:
    sources = tuple(str(i + 1) for i in range(len(bands)))
    return DatasetInfo(
        name="chips", task="classification", bands=bands, band_sources=sources, units=units, class_names=("a", "b")
    )


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_gain_clip_mean_and_std_are_those_of_plain_numpy(dtype: str) -> None:
    rng = np.random.default_rng(1)
    low, high = (0, 256) if dtype == "uint8" else (0 if dtype == "uint16" else -500, 9000)
    images = rng.integers(low, high, (4, 3, 8, 8)).astype(dtype)
    ours = recipe()(torch.from_numpy(images))
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), by_numpy(recipe(), images), rtol=1e-5, atol=1e-4)


def test_negative_and_bright_values_are_clipped_only_in_bands_with_a_ceiling() -> None:
    images = torch.tensor([-1000.0, 1e6])[:, None, None, None].expand(2, 3, 8, 8)
    ours = recipe(mean=(0, 0, 0), std=(1, 1, 1))(images)
    assert ours[:, 0, 0, 0].tolist() == [0.0, 255.0]
    assert ours[:, 1, 0, 0].tolist() == [-500.0, 5e5]
    assert ours[:, 2, 0, 0].tolist() == [0.0, 700.0]


def test_recipe_without_ceilings_clips_nothing() -> None:
    images = torch.full((1, 3, 8, 8), -40.0)
    free = recipe(ceiling=(None, None, None))
    np.testing.assert_allclose(free(images).numpy(), by_numpy(free, images.numpy()), rtol=1e-6)


def test_preprocessing_leaves_its_input_alone() -> None:
    images = torch.full((1, 3, 8, 8), 5.0)
    recipe(input_size=16)(images)
    assert torch.equal(images, torch.full((1, 3, 8, 8), 5.0))


@pytest.mark.parametrize("size", [5, 13, 32])
@pytest.mark.parametrize("target", [8, 14, 32])
def test_resize_is_torch_bilinear_with_antialiasing_after_the_normalisation(size: int, target: int) -> None:
    images = torch.from_numpy(np.random.default_rng(size).integers(0, 9000, (2, 3, size, size + 3)).astype(np.float32))
    normalised = torch.from_numpy(by_numpy(recipe(), images.numpy()).astype(np.float32))
    expected = F.interpolate(normalised, size=(target, target), mode="bilinear", align_corners=False, antialias=True)
    torch.testing.assert_close(recipe(input_size=target)(images), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("size", "target"), [(64, 24), (64, 16), (16, 56), (30, 17)])
def test_resize_is_that_of_pillow(size: int, target: int) -> None:
    image = np.random.default_rng(target).uniform(0, 255, (size, size)).astype(np.float32)
    plain = recipe(input_size=target, bands=("RED",), source_bands=("RED",), gain=(1.0,), ceiling=(None,), mean=(0.0,))
    ours = replace(plain, std=(1.0,))(torch.from_numpy(image)[None, None])[0, 0].numpy()
    pillow = np.asarray(Image.fromarray(image).resize((target, target), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(ours, pillow, atol=2e-3)


def test_image_of_the_right_size_is_not_resampled() -> None:
    images = torch.zeros(1, 3, 8, 8)
    images[0, :, 3, 5] = 100.0
    out = recipe(mean=(0, 0, 0))(images)
    assert int((out != 0).sum()) == 3


@given(st.integers(1, 5), st.sampled_from([4, 8, 11, 20]), st.integers(0, 2**32 - 1))
def test_batch_gives_bit_for_bit_what_its_images_give_one_by_one(count: int, size: int, seed: int) -> None:
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 5000, (count, 3, size, size)).astype(np.int16))
    together = recipe()(images)
    alone = torch.cat([recipe()(images[i : i + 1]) for i in range(count)])
    assert torch.equal(together, alone)


def test_8_bit_picture_for_sam2_is_scaled_to_one_with_imagenet_statistics() -> None:
    every_value = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    plan, absent = plan_preprocessing(get_backbone("sam2_hiera_tiny"), dataset(("RED", "GREEN", "BLUE"), "uint8"), 16)
    mean, std = (np.array(v)[:, None, None] for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    expected = (every_value / 255.0 - mean) / std
    assert absent == []
    np.testing.assert_allclose(plan(torch.from_numpy(every_value)).numpy(), expected, rtol=0, atol=1e-6)


def test_8_bit_picture_for_dofa_keeps_its_visible_values() -> None:
    plan, _ = plan_preprocessing(get_backbone("dofa_base"), dataset(("RED", "GREEN", "BLUE"), "uint8"), 32)
    assert plan.gain == pytest.approx((1.0, 1.0, 1.0), rel=1e-12)
    assert plan.ceiling == (255.0, 255.0, 255.0)


@pytest.mark.parametrize(("units", "white"), [("dn", 3000.0), ("reflectance", 0.3), ("uint8", 255.0), ("unit", 1.0)])
def test_same_brightness_gives_the_same_input_whatever_the_units(units: Units, white: float) -> None:
    for name, level in (("sam2_hiera_tiny", 1.0), ("prithvi_eo_v2_300", 3000.0), ("dofa_base", 255.0)):
        plan, _ = plan_preprocessing(get_backbone(name), dataset(("RED", "GREEN", "BLUE"), units), 224)
        assert [white * g for g in plan.gain] == pytest.approx([level] * 3, rel=1e-9), name


def test_reflectance_and_digital_numbers_of_the_same_scene_agree() -> None:
    bands = ("BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2")
    dn = np.random.default_rng(3).integers(0, 6000, (1, 6, 14, 14)).astype(np.int16)
    spec = get_backbone("prithvi_eo_v2_300")
    from_dn = plan_preprocessing(spec, dataset(bands, "dn"), 14)[0](torch.from_numpy(dn))
    from_reflectance = plan_preprocessing(spec, dataset(bands, "reflectance"), 14)[0](torch.from_numpy(dn / 1e4))
    torch.testing.assert_close(from_dn, from_reflectance, rtol=1e-5, atol=1e-5)


def test_plan_takes_each_channels_numbers_from_the_backbone_in_its_order() -> None:
    spec = get_backbone("prithvi_eo_v2_300")
    plan, _ = plan_preprocessing(spec, dataset(("SWIR_2", "RED", "SWIR_1", "NIR_NARROW", "GREEN", "BLUE")), 224)
    assert plan.bands == plan.source_bands == ("BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2")
    assert plan.mean == (1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0)
    assert plan.std == (2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0)
    assert plan.gain == (1.0,) * 6
    assert plan.input_size == 224


def test_optional_bands_that_are_absent_are_left_out_and_named() -> None:
    spec = get_backbone("prithvi_eo_v2_300")
    plan, absent = plan_preprocessing(spec, dataset(("RED", "GREEN", "BLUE", "SWIR_2")), 224)
    assert plan.bands == ("BLUE", "GREEN", "RED", "SWIR_2")
    assert plan.mean == (1087.0, 1342.0, 1433.0, 1363.0)
    assert absent == ["NIR_NARROW", "SWIR_1"]
    assert len(plan.gain) == len(plan.ceiling) == len(plan.mean) == len(plan.std) == 4


def test_missing_required_bands_are_refused_naming_backbone_dataset_and_bands() -> None:
    spec = get_backbone("sam2_hiera_tiny")
    sentence = (
        r"^backbone 'sam2_hiera_tiny' cannot read dataset 'chips': bands RED, BLUE are needed and not in the data, "
        r"which has GREEN, NIR\. .*--bands\.$"
    )
    with pytest.raises(BandError, match=sentence):
        plan_preprocessing(spec, dataset(("GREEN", "NIR")), 224)


@pytest.mark.parametrize("source", ["NIR", "NIR_BROAD"])
def test_near_infrared_that_stands_in_is_recorded_as_source(source: str) -> None:
    spec = get_backbone("prithvi_eo_v2_300")
    plan, absent = plan_preprocessing(spec, dataset(("BLUE", "GREEN", "RED", source)), 224)
    assert dict(zip(plan.bands, plan.source_bands, strict=True))["NIR_NARROW"] == source
    assert plan.to_json()["source_bands"] == ["BLUE", "GREEN", "RED", source]
    assert "NIR_NARROW" not in absent


def test_recipe_is_plain_json_that_tells_every_number() -> None:
    import json

    facts = json.loads(json.dumps(recipe().to_json()))
    again = Preprocessing(**{k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()})
    assert again == recipe()


def test_backbone_outside_the_registry_is_planned_from_its_own_bands() -> None:
    bands = (
        BandInput(name="NIR", gain=2.0, mean=1.0, std=4.0, ceiling=9.0, required=True),
        BandInput(name="VV", gain=1.0, mean=0.0, std=1.0),
    )
    spec: BackboneSpec = replace(get_backbone("sam2_hiera_tiny"), name="own", bands=bands)
    plan, absent = plan_preprocessing(spec, dataset(("RED", "NIR"), "reflectance"), 32)
    assert (plan.bands, plan.gain, plan.ceiling, plan.mean, plan.std) == (("NIR",), (2e4,), (9.0,), (1.0,), (4.0,))
    assert absent == ["VV"]


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 64), st.integers(0, 2**32 - 1))
def test_resized_mask_takes_the_pixel_under_each_centre(height: int, width: int, size: int, seed: int) -> None:
    mask = np.random.default_rng(seed).integers(-1, 40, (height, width)).astype(np.int16)
    expected = np.array(
        [
            [mask[(2 * r + 1) * height // (2 * size), (2 * c + 1) * width // (2 * size)] for c in range(size)]
            for r in range(size)
        ]
    )
    resized = resize_mask(mask, size)
    assert resized.dtype == np.int16
    np.testing.assert_array_equal(resized, expected)


@pytest.mark.parametrize(("size", "target"), [(7, 21), (64, 24), (10, 10), (256, 224)])
def test_resized_mask_is_torch_nearest_exact(size: int, target: int) -> None:
    mask = np.random.default_rng(size).integers(0, 255, (size, size)).astype(np.uint8)
    tensor = torch.from_numpy(mask.astype(np.float32))[None, None]
    expected = F.interpolate(tensor, size=(target, target), mode="nearest-exact")[0, 0].numpy()
    np.testing.assert_array_equal(resize_mask(mask, target), expected)
