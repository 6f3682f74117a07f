"""Band names and which band may stand in for which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedcache.bands import SENTINEL2, STAND_INS, WAVELENGTHS_UM, canonical_band, match_bands, parse_bands
from embedcache.errors import BandError


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("RED", "RED"),
        ("red", "RED"),
        (" Red ", "RED"),
        ("R", "RED"),
        ("g", "GREEN"),
        ("B", "BLUE"),
        ("n", "NIR"),
        ("B1", "COASTAL_AEROSOL"),
        ("b2", "BLUE"),
        ("B02", "BLUE"),
        ("B8", "NIR_BROAD"),
        ("B08", "NIR_BROAD"),
        ("B8A", "NIR_NARROW"),
        ("b8a", "NIR_NARROW"),
        ("B08A", "NIR_NARROW"),
        ("B9", "WATER_VAPOR"),
        ("B10", "CIRRUS"),
        ("B11", "SWIR_1"),
        ("B12", "SWIR_2"),
        ("nir narrow", "NIR_NARROW"),
        ("swir-1", "SWIR_1"),
        ("red edge - 2", "RED_EDGE_2"),
    ],
)
def test_band_written_in_any_usual_way_gets_its_standard_name(written: str, name: str) -> None:
    assert canonical_band(written) == name


@pytest.mark.parametrize(("written", "kept"), [("B13", "B13"), ("B2A", "B2A"), ("B00", "B00"), ("vv", "VV"), ("", "")])
def test_band_that_is_not_known_keeps_its_name_in_capitals(written: str, kept: str) -> None:
    assert canonical_band(written) == kept


@given(st.text(max_size=12))
def test_naming_a_band_twice_changes_nothing_more(text: str) -> None:
    once = canonical_band(text)
    assert canonical_band(once) == once


@pytest.mark.parametrize("name", sorted(WAVELENGTHS_UM))
def test_every_standard_name_stands_for_itself(name: str) -> None:
    assert canonical_band(name) == name


def test_sentinel2_has_thirteen_different_bands_and_all_have_a_wavelength() -> None:
    assert len(SENTINEL2) == 13
    assert set(SENTINEL2.values()) <= set(WAVELENGTHS_UM)
    assert len(set(SENTINEL2.values())) == 13


def test_sentinel2_bands_in_the_order_of_their_wavelengths() -> None:
    order = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
    wavelengths = [WAVELENGTHS_UM[SENTINEL2[band]] for band in order]
    assert wavelengths == sorted(wavelengths)
    assert list(SENTINEL2) == order


def test_band_list_is_read_in_the_order_of_the_file() -> None:
    assert parse_bands("B04, b3,Blue,B8A") == ("RED", "GREEN", "BLUE", "NIR_NARROW")


@pytest.mark.parametrize("text", ["", "RED,,BLUE", "RED,", ",RED", " "])
def test_band_list_with_an_empty_name_is_refused(text: str) -> None:
    with pytest.raises(BandError, match="empty name"):
        parse_bands(text)


def test_band_list_that_names_one_band_in_two_ways_is_refused_naming_it() -> None:
    with pytest.raises(BandError, match="names RED twice"):
        parse_bands("RED,GREEN,B04")


def test_bands_are_paired_in_the_order_of_the_backbone() -> None:
    pairs, absent = match_bands(["RED", "GREEN", "BLUE"], ["RED"], ["BLUE", "GREEN", "SWIR_1", "RED"])
    assert pairs == [("RED", "RED"), ("GREEN", "GREEN"), ("BLUE", "BLUE")]
    assert absent == []


def test_band_that_can_be_done_without_is_listed_as_absent() -> None:
    pairs, absent = match_bands(["RED", "SWIR_1", "SWIR_2"], ["RED"], ["RED"])
    assert pairs == [("RED", "RED")]
    assert absent == ["SWIR_1", "SWIR_2"]


def test_bands_that_are_needed_and_missing_are_all_named_with_what_there_is() -> None:
    with pytest.raises(BandError, match=r"^bands RED, BLUE are needed and not in the data, which has GREEN, NIR\."):
        match_bands(["RED", "GREEN", "BLUE", "SWIR_1"], ["RED", "GREEN", "BLUE"], ["GREEN", "NIR"])


@pytest.mark.parametrize(
    ("wanted", "available", "used"),
    [
        ("NIR_NARROW", ["NIR_BROAD", "NIR", "NIR_NARROW"], "NIR_NARROW"),
        ("NIR_NARROW", ["NIR_BROAD", "NIR"], "NIR"),
        ("NIR_NARROW", ["NIR_BROAD"], "NIR_BROAD"),
        ("NIR_BROAD", ["NIR_NARROW", "NIR", "NIR_BROAD"], "NIR_BROAD"),
        ("NIR_BROAD", ["NIR_NARROW", "NIR"], "NIR"),
        ("NIR_BROAD", ["NIR_NARROW"], "NIR_NARROW"),
    ],
)
def test_nearest_of_the_near_infrared_bands_stands_in(wanted: str, available: list[str], used: str) -> None:
    assert match_bands([wanted], [wanted], available) == ([(wanted, used)], [])


@pytest.mark.parametrize("wanted", sorted(set(WAVELENGTHS_UM) - set(STAND_INS)))
def test_no_other_band_has_a_stand_in(wanted: str) -> None:
    others = [b for b in WAVELENGTHS_UM if b != wanted]
    assert match_bands([wanted], [], others) == ([], [wanted])


def test_stand_ins_are_near_infrared_within_50_nanometres() -> None:
    for band, sources in STAND_INS.items():
        assert sources[0] == band
        assert all(abs(WAVELENGTHS_UM[s] - WAVELENGTHS_UM[band]) < 0.05 for s in sources)
