"""Backbones from elsewhere: found by entry point, by module, by environment; refused in a sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embedcache.backbones import _registry
from embedcache.backbones._plugins import check_spec
from embedcache.backbones._registry import (
    built_in,
    find_all,
    find_backbones,
    get_backbone,
    identity_of,
    list_backbones,
    plugin_problems,
)
from embedcache.backbones._weights import find_weights, load_backbone
from embedcache.errors import EmbedcacheError, SettingError, UnknownNameError, WeightsError

PLUGIN = """
from embedcache.backbones import BackboneSpec, BandInput, Features, fill

class Extractor:
    def __init__(self, module):
        self.module = module
    def __call__(self, images, time=None, location=None):
        maps = self.module(images)
        return Features(pooled={"mean": maps.mean(dim=(2, 3))}, levels=[maps])

def load(spec, bands, input_size, state):
    import torch
    module = torch.nn.Conv2d(len(bands), 4, 8, 8)
    if state is not None:
        fill(module, state)
    return Extractor(module)

def spec(name):
    return BackboneSpec(
        name=name, title=name, size_multiple=8, level_facts=((4, 8),), pooled=("mean",), parameters_m=0.001,
        bands=tuple(BandInput(name=b, gain=1.0, mean=1000.0, std=500.0, required=True) for b in ("RED", "NIR")),
        licence="MIT", citation="", hub=None, load=load, input_size=16, version="1",
    )

ONE = spec("mine")
MANY = [spec("first"), spec("second")]
TAKEN = spec("dofa_base")
EMPTY = []
WORD = "no backbone"
MIXED = [ONE, 3]
TWINS = [ONE, ONE]
ODD = spec("a+b")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a plug-in, as the working directory; nothing of it is remembered afterwards."""
    before, paths = set(sys.modules), list(sys.path)
    (tmp_path / "my_models.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    _registry._plugged_in.cache_clear()
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]
    sys.path[:] = paths
    _registry._plugged_in.cache_clear()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Make ``folder`` look like a place into which a distribution with entry points was installed."""
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    lines = [f"{k} = {v}" for k, v in points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[embedcache.backbones]", *lines, ""]))
    monkeypatch.syspath_prepend(str(folder))
    _registry._plugged_in.cache_clear()


def test_a_module_names_one_or_several(folder: Path) -> None:
    assert [s.name for s in find_backbones("my_models:ONE")] == ["mine"]
    assert [s.name for s in find_backbones("my_models:MANY")] == ["first", "second"]
    assert [s.name for s in find_backbones("my_models:MANY#second")] == ["second"]
    assert get_backbone("my_models:ONE").reference == "my_models:ONE"
    assert [get_backbone(s.reference) for s in find_backbones("my_models:MANY")] == list(
        find_backbones("my_models:MANY")
    )
    with pytest.raises(SettingError, match="holds 2; name one of my_models:MANY#first, my_models:MANY#second"):
        get_backbone("my_models:MANY")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("not_there:ONE", "no module 'not_there'"),
        ("not_there.inner:ONE", "no module 'not_there'"),
        ("my_models:ON", "has no 'ON'; did you mean 'ONE'"),
        ("my_models:EMPTY", "an empty list"),
        ("my_models:WORD", "must be a BackboneSpec, or a list of them; it is or holds str"),
        ("my_models:MIXED", "holds int"),
        ("my_models:TWINS", "two backbones of one name"),
        ("my_models:ODD", "'a\\+b' .* letters, digits"),
        ("my_models:TAKEN", "called 'dofa_base', as a built-in one is"),
        ("my_models:MANY#third", "'third' is not in 'my_models:MANY', which holds first, second"),
        ("my_models:", "write it as package.module:NAME"),
        ("a b:ONE", "write it as package.module:NAME"),
        ("broken:ONE", r"'broken' failed to import \(ZeroDivisionError"),
        ("needy:ONE", "module 'needy' needs 'surely_not_installed', not found"),
    ],
)
def test_errors_are_one_sentence(folder: Path, reference: str, said: str) -> None:
    (folder / "broken.py").write_text("1 / 0\n")
    (folder / "needy.py").write_text("import surely_not_installed\n")
    with pytest.raises(EmbedcacheError, match=said) as caught:
        find_backbones(reference)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, (SettingError, UnknownNameError))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bands": ()}, "no band"),
        ({"level_facts": ()}, "no level"),
        ({"level_facts": ((4, 16), (4, 8))}, "finest first"),
        ({"pooled": ()}, "no pooled vector"),
        ({"size_multiple": 0}, "below 1"),
        ({"name": "../up"}, "letters"),
    ],
)
def test_unusable_specs_are_refused(folder: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        check_spec(replace(get_backbone("my_models:ONE"), **change), "x:Y")


def test_entry_points_are_known_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(folder, monkeypatch, anything="my_models:MANY", other="my_models:ONE")
    assert set(list_backbones()) - set(built_in()) == {"first", "second", "mine"}
    assert get_backbone("second").reference == "my_models:MANY#second"
    assert plugin_problems() == ()


def test_the_environment_makes_a_plug_in_known_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDCACHE_BACKBONES", "my_models:ONE, my_models:MANY#first")
    assert get_backbone("mine").name == "mine"
    assert set(list_backbones()) - set(built_in()) == {"mine", "first"}


def test_plug_ins_that_cannot_be_used_are_left_out_and_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(
        folder,
        monkeypatch,
        a="not_there:X",
        b="my_models:TAKEN",
        c="my_models:ONE",
        d="my_models:ONE",
        e="my_models:MANY",
    )
    assert set(list_backbones()) - set(built_in()) == {"first", "second"}
    assert list_backbones()["dofa_base"] is built_in()["dofa_base"]
    problems = plugin_problems()
    assert len(problems) == 3
    for said in ("no module 'not_there'", "a built-in backbone is called 'dofa_base'", "both call a backbone 'mine'"):
        assert any(said in p and "mine (" in p for p in problems)
    with pytest.raises(UnknownNameError, match="both call a backbone 'mine': neither is used"):
        get_backbone("mine")


def test_two_of_one_name_are_not_extracted_together(folder: Path) -> None:
    (folder / "others.py").write_text("import my_models\nONE = my_models.spec('mine')\n")
    assert len(find_all(["my_models:ONE", "my_models:ONE", "dofa_base"])) == 2
    with pytest.raises(SettingError, match="two of the backbones are called 'mine'"):
        find_all(["my_models:ONE", "others:ONE"])


def test_it_runs_and_is_filled_strictly(folder: Path) -> None:
    spec = get_backbone("my_models:ONE")
    model = load_backbone(spec, find_weights(spec, "random:3"), ("RED", "NIR"))
    torch.save(model.module.state_dict(), folder / "w.pt")
    again = load_backbone(spec, find_weights(spec, str(folder / "w.pt")), ("RED", "NIR"))
    x = torch.randn(2, 2, 16, 16)
    assert torch.equal(model(x).levels[0], again(x).levels[0])
    torch.save({"weight": torch.zeros(4, 2, 8, 8)}, folder / "w.pt")
    with pytest.raises(WeightsError, match="do not fit backbone 'mine': 1 of 2 tensors are missing"):
        load_backbone(spec, find_weights(spec, str(folder / "w.pt")), ("RED", "NIR"))


def test_random_weights_of_ones_own_file_need_no_distribution(folder: Path) -> None:
    assert set(find_weights(get_backbone("my_models:ONE"), "random").identity) == {"kind", "seed", "torch"}
    with pytest.raises(WeightsError, match="package 'surely_not' holds it, which is not installed"):
        find_weights(replace(get_backbone("my_models:ONE"), package="surely_not"), "random")


def test_identity_moves_when_and_only_when_features_may(folder: Path) -> None:
    spec = get_backbone("my_models:ONE")
    same = [{"title": "another"}, {"licence": "other"}, {"reference": "elsewhere:ONE"}, {"notes": ("hm",)}]
    other: list[dict[str, Any]] = [
        {"version": "2"},
        {"bands": (replace(spec.bands[0], mean=1.0), spec.bands[1])},
        {"bands": (replace(spec.bands[0], ceiling=1.0), spec.bands[1])},
        {"bands": spec.bands[::-1]},
        {"level_facts": ((5, 8),)},
        {"pooled": ("mean", "cls")},
    ]
    assert all(identity_of(replace(spec, **change)) == identity_of(spec) for change in same)
    assert all(identity_of(replace(spec, **change)) != identity_of(spec) for change in other)
    assert all(identity_of(s) == {} for s in built_in().values())  # stores of earlier releases stay valid


def test_a_loader_of_its_own_is_hashed_and_held_to_it(folder: Path) -> None:
    spec = get_backbone("my_models:ONE")

    def fixed(s: Any, bands: tuple[str, ...], size: int) -> Any:
        made = s.load(s, bands, size, None)
        torch.nn.init.constant_(made.module.weight, 0.5)
        torch.nn.init.zeros_(made.module.bias)
        return made

    def partly(s: Any, bands: tuple[str, ...], size: int) -> Any:
        made = s.load(s, bands, size, None)
        torch.nn.init.zeros_(made.module.bias)
        return made

    def offline(s: Any, bands: tuple[str, ...], size: int) -> Any:
        raise ConnectionError("no route to host\nand much more")

    loaded = replace(spec, pretrained=fixed)
    weights = find_weights(loaded, "pretrained")
    assert weights.kind == "library"
    assert weights.identity == find_weights(loaded, "pretrained").identity
    assert not load_backbone(loaded, weights, ("RED", "NIR")).module.training
    random = replace(spec, pretrained=partly)
    with pytest.raises(WeightsError, match="part of them is random"):
        load_backbone(random, find_weights(random, "pretrained"), ("RED", "NIR"))
    with pytest.raises(WeightsError, match=r"\(ConnectionError: no route to host\).*--weights FILE"):
        find_weights(replace(spec, pretrained=offline), "pretrained")


def test_what_its_code_raises_is_one_sentence(folder: Path) -> None:
    def bad(*_: Any) -> Any:
        raise KeyError("oops")

    spec = replace(get_backbone("my_models:ONE"), load=bad)
    with pytest.raises(SettingError, match=r"'mine' could not be built \(KeyError: 'oops'\)"):
        load_backbone(spec, find_weights(spec, "random"), ("RED", "NIR"))
