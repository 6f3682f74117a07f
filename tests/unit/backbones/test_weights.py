"""Weights: found, hashed, read without running code, and filling the model exactly."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from embedcache.backbones._registry import get_backbone
from embedcache.backbones._weights import find_weights, load_backbone
from embedcache.errors import WeightsError

Load = Callable[..., Any]
State = dict[str, torch.Tensor]


def published(name: str, module: torch.nn.Module) -> State:
    """The state of a small backbone under the key names of the published files, with what else those hold."""
    state = {k: v.clone() for k, v in module.state_dict().items()}
    if name.startswith("sam2"):
        whole = {f"image_encoder.trunk.{k}": v for k, v in state.items()}
        return whole | {"image_encoder.neck.convs.0.conv.weight": torch.zeros(2, 2), "no_mem_embed": torch.zeros(1)}
    if name.startswith("prithvi"):
        whole = {f"encoder.{k}": v for k, v in state.items()}
        whole["encoder.pos_embed"] = torch.zeros(1, 4 * 196 + 1, state["pos_embed"].shape[-1])  # of four frames
        return whole | {"decoder.mask_token": torch.zeros(1), "decoder.decoder_embed.weight": torch.zeros(2, 2)}
    stripped = {k.removeprefix("dofa_model."): v for k, v in state.items()}
    return {k: v for k, v in stripped.items() if not k.startswith(("head.", "fc_norm."))}


def features(model: Any, bands: int, size: int = 224) -> list[torch.Tensor]:
    x = torch.randn(1, bands, size, size, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        out = model(x)
    return [*out.levels, *out.pooled.values()]


def load_file(name: str, path: Path, bands: tuple[str, ...] | None = None, size: int = 224) -> Any:
    spec = get_backbone(name)
    return load_backbone(spec, find_weights(spec, str(path)), bands or tuple(b.name for b in spec.bands), size)


@pytest.mark.parametrize("name", ["sam2_hiera_tiny", "prithvi_eo_v2_tiny_tl", "dofa_small"])
@pytest.mark.parametrize("form", ["pt", "wrapped.pt", "safetensors"])
def test_a_published_file_gives_the_features_of_its_model(loaded: Load, tmp_path: Path, name: str, form: str) -> None:
    original = loaded(name, seed=5)
    state = published(name, original.module)
    path = tmp_path / f"w.{form}"
    if form == "safetensors":
        save_file({k: v.contiguous() for k, v in state.items()}, path)
    else:
        torch.save({"model": state} if form == "wrapped.pt" else state, path)
    count = len(get_backbone(name).bands)
    for ours, theirs in zip(features(load_file(name, path), count), features(original, count), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["sam2_hiera_tiny", "prithvi_eo_v2_tiny_tl"])
def test_the_bare_encoder_is_accepted_too(loaded: Load, tmp_path: Path, name: str) -> None:
    original = loaded(name, seed=5)
    torch.save(original.module.state_dict(), tmp_path / "w.pt")
    count = len(get_backbone(name).bands)
    assert torch.equal(features(load_file(name, tmp_path / "w.pt"), count)[0], features(original, count)[0])


def test_fewer_bands_take_the_channels_that_terratorch_takes(loaded: Load, tmp_path: Path) -> None:
    from embedcache.backbones._terratorch import terratorch_registry

    name, bands = "prithvi_eo_v2_tiny_tl", ("RED", "NIR_NARROW", "BLUE", "GREEN")
    state = published(name, loaded(name, seed=5).module)
    torch.save(state, tmp_path / "w.pt")
    theirs = terratorch_registry().build(name, pretrained=True, ckpt_path=str(tmp_path / "w.pt"), bands=list(bands))
    x = torch.randn(1, 4, 224, 224, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = theirs.eval()(x)[-1][:, 0]
    ours = load_file(name, tmp_path / "w.pt", bands)
    assert torch.equal(features(ours, 4)[4], expected)


def test_dofa_position_embeddings_are_resized_as_terratorch_does(loaded: Load, tmp_path: Path) -> None:
    from embedcache.backbones._terratorch import terratorch_registry

    state = published("dofa_small", loaded("dofa_small", seed=5).module)
    state["pos_embed"] = torch.randn(state["pos_embed"].shape, generator=torch.Generator().manual_seed(1))
    torch.save(state, tmp_path / "w.pt")
    bands = [b.name for b in get_backbone("dofa_small").bands]
    build = terratorch_registry().build
    theirs = build(
        "dofa_small_patch16_224", pretrained=True, ckpt_data=str(tmp_path / "w.pt"), model_bands=bands, img_size=96
    )
    x = torch.randn(1, 6, 96, 96, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = theirs.eval()(x)[0][:, 0]
    ours = features(load_file("dofa_small", tmp_path / "w.pt", size=96), 6, 96)[4]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def changed(state: Mapping[str, torch.Tensor], how: str) -> Any:
    out = dict(state)
    key = next(k for k in out if k.endswith(("blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.weight")))
    if how == "missing":
        out.pop(key)
    elif how == "extra":
        out[key.replace("qkv", "surprise")] = torch.zeros(1)
    elif how == "shape":
        out[key] = out[key][:-1].clone()
    return out


@pytest.mark.parametrize("name", ["sam2_hiera_tiny", "prithvi_eo_v2_tiny_tl", "dofa_small"])
@pytest.mark.parametrize(("how", "said"), [("missing", "missing"), ("extra", "unknown"), ("shape", "another shape")])
def test_a_file_that_does_not_fit_is_refused(loaded: Load, tmp_path: Path, name: str, how: str, said: str) -> None:
    torch.save(changed(published(name, loaded(name).module), how), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=f"do not fit backbone '{name}'.*{said}"):
        load_file(name, tmp_path / "w.pt")


def test_a_file_of_another_model_is_refused(loaded: Load, tmp_path: Path) -> None:
    torch.save(published("dofa_small", loaded("dofa_small").module), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="no Hiera trunk"):
        load_file("sam2_hiera_tiny", tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="missing"):
        load_file("prithvi_eo_v2_tiny_tl", tmp_path / "w.pt")


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("content", ["bomb", "empty", "text", "list", "no tensors", "bad safetensors"])
def test_files_that_are_no_weights_are_refused_and_run_nothing(tmp_path: Path, content: str) -> None:
    path, marker = tmp_path / "w.pt", tmp_path / "it_ran"
    if content == "bomb":
        path.write_bytes(pickle.dumps({"weight": Bomb(marker)}))
    elif content == "empty":
        path.write_bytes(b"")
    elif content == "text":
        path.write_text("not weights at all")
    elif content == "list":
        torch.save([torch.zeros(1)], path)
    elif content == "no tensors":
        torch.save({"epoch": 3}, path)
    else:
        path = tmp_path / "w.safetensors"
        path.write_bytes(b"12345678")
    with pytest.raises(WeightsError):
        load_file("sam2_hiera_tiny", path)
    assert not marker.exists()


def test_identity_follows_content_not_name(tmp_path: Path) -> None:
    spec = get_backbone("sam2_hiera_tiny")
    for name, value in (("a", 0.0), ("b", 0.0), ("c", 1.0)):
        save_file({"x": torch.full((3,), value)}, tmp_path / f"{name}.safetensors")
    a, b, c = (find_weights(spec, str(tmp_path / f"{n}.safetensors")).identity for n in "abc")
    assert a == b != c
    assert find_weights(spec, "random").identity == find_weights(spec, "random:0").identity
    assert find_weights(spec, "random:1").identity != find_weights(spec, "random:0").identity


@pytest.mark.parametrize("choice", ["random:x", "random:-1", "absent.pt"])
def test_bad_choices_are_said(choice: str) -> None:
    with pytest.raises(WeightsError, match=choice):
        find_weights(get_backbone("sam2_hiera_tiny"), choice)


def test_unpublished_weights_are_said() -> None:
    with pytest.raises(WeightsError, match="no weights of 'dofa_small' are published"):
        find_weights(get_backbone("dofa_small"), "pretrained")


def test_a_file_in_the_hubs_local_cache_is_found_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    spec = get_backbone("sam2_hiera_tiny")
    assert spec.hub is not None
    with pytest.raises(WeightsError, match=r"'sam2_hiera_tiny.pt' of 'facebook/sam2-hiera-tiny'.*--weights FILE"):
        find_weights(spec, "pretrained")
    repo = tmp_path / "models--facebook--sam2-hiera-tiny"
    (repo / "snapshots" / "abc").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    (repo / "snapshots" / "abc" / "sam2_hiera_tiny.pt").write_bytes(b"weights")
    found = find_weights(spec, "pretrained")
    assert found.path is not None
    assert found.path.read_bytes() == b"weights"
    assert found.source == "facebook/sam2-hiera-tiny/sam2_hiera_tiny.pt"
