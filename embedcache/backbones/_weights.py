"""Weights: where they come from, what identifies them, and loading them strictly.

The model libraries' own loaders accept files that do not fit, silently. Here every file is hashed, read without
running code from it, and must fill the model exactly.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from embedcache.backbones._spec import BackboneSpec, FeatureExtractor
from embedcache.errors import EmbedcacheError, SettingError, WeightsError

if TYPE_CHECKING:
    import torch

_WRAPPERS = ("model", "state_dict", "model_state_dict", "teacher")


@dataclass(frozen=True)
class Weights:
    """Weights that were found, with what identifies them."""

    kind: Literal["random", "file", "library"]
    """``library``: loaded by the model library's own loader."""
    identity: Mapping[str, Any]
    """Part of the store's fingerprint."""
    source: str
    """Where they came from, for people; not part of the fingerprint."""
    path: Path | None = None
    seed: int = 0


def find_weights(spec: BackboneSpec, choice: str) -> Weights:
    """Find the weights that ``choice`` names; the model is built only where its library loads them itself.

    Parameters
    ----------
    spec
        The backbone.
    choice
        ``pretrained`` (the hub, or the model library's own loader), ``random`` or ``random:SEED``, or the path of a
        state dict (``.pt``, ``.pth``, ``.safetensors``).

    Raises
    ------
    WeightsError
        If they cannot be had; the sentence says which file to fetch, and how to pass it.
    """
    if choice == "random" or choice.startswith("random:"):
        text = choice.partition(":")[2] or "0"
        if not text.isdigit():
            raise WeightsError(f"weights {choice!r}: the seed must be a whole number, as in 'random:0'.")
        return Weights(
            kind="random",
            identity={
                "kind": "random",
                "seed": int(text),
                # The same seed draws other numbers in other versions of the code that draws them.
                "torch": importlib.metadata.version("torch").split("+")[0],
                **_version_of(spec),
            },
            source=f"random initialisation, seed {int(text)}",
            seed=int(text),
        )
    if choice == "pretrained" and spec.pretrained is not None:
        digest = state_digest(_build_pretrained(spec, tuple(b.name for b in spec.bands), spec.input_size))
        return Weights(
            kind="library",
            identity={"kind": "library", "sha256": digest},
            source=f"{spec.package or spec.name}'s own loader",
        )
    if choice == "pretrained":
        path = _download(spec)
        source = f"{spec.hub.repo}/{spec.hub.filename}" if spec.hub else ""
    else:
        path = Path(choice).expanduser()
        source = str(path)
        if not path.is_file():
            raise WeightsError(
                f"weights {choice!r}: no such file. Pass 'pretrained', 'random', or the path of a state dict."
            )
    return Weights(kind="file", identity={"kind": "file", "sha256": _sha256(path)}, source=source, path=path)


def load_backbone(
    spec: BackboneSpec, weights: Weights, bands: tuple[str, ...], input_size: int | None = None
) -> FeatureExtractor:
    """Build a frozen backbone for these bands and fill it with these weights.

    Raises
    ------
    WeightsError
        If the file cannot be read, or does not fill the model exactly.
    """
    import torch

    size = input_size or spec.input_size
    if weights.kind == "library":
        extractor = _build_pretrained(spec, bands, size)
        as_found = bands == tuple(b.name for b in spec.bands) and size == spec.input_size
        if as_found and state_digest(extractor) != weights.identity["sha256"]:
            raise WeightsError(
                f"backbone {spec.name!r} was given other weights by its loader than a moment ago: part of them is "
                "random. Pass a file with --weights FILE."
            )
        extractor.module.eval().requires_grad_(False)
        return extractor
    state = None if weights.path is None else read_state(weights.path)
    with torch.random.fork_rng(devices=[]):  # the caller's random state is none of our business
        torch.manual_seed(weights.seed)
        try:
            extractor = spec.load(spec, bands, size, state)
        except WeightsError as error:
            raise WeightsError(f"weights {weights.source!r} do not fit backbone {spec.name!r}: {error}") from error
        except (EmbedcacheError, ImportError):
            raise
        except Exception as error:  # a plug-in's own code may fail in any way
            if not spec.reference:
                raise
            raise SettingError(f"backbone {spec.name!r} could not be built ({_reason(error)}).") from error
    extractor.module.eval().requires_grad_(False)
    return extractor


def state_digest(extractor: FeatureExtractor) -> str:
    """SHA-256 of a model's state: names, dtypes, shapes and bytes, in the order of names.

    Parameters that its ``unused`` names are left out: no feature depends on them, and a loader may leave them random.
    """
    import torch

    digest = hashlib.sha256()
    unused = set(getattr(extractor, "unused", ()))
    for key, value in sorted(extractor.module.state_dict().items()):
        if key in unused:
            continue
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """Read a state dict from safetensors or a PyTorch file, without running code from it.

    Raises
    ------
    WeightsError
        If the file is neither, or holds something else than tensors.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise WeightsError(f"{str(path)!r} is not a readable safetensors file ({error}).") from error
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for foreign files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{str(path)!r} cannot be read as a PyTorch state dict ({reason}). It must hold tensors only: "
            "files that would run code are refused."
        ) from error
    for key in _WRAPPERS:
        if isinstance(data, dict) and isinstance(data.get(key), dict):
            data = data[key]
    if not isinstance(data, dict) or not data:
        raise WeightsError(f"{str(path)!r} holds no state dict.")
    tensors = {k: v for k, v in data.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise WeightsError(
            f"{str(path)!r} holds no tensors by name; its keys are {', '.join(map(str, list(data)[:5]))}."
        )
    return tensors


def fill(module: torch.nn.Module, state: Mapping[str, torch.Tensor], *, not_needed: tuple[str, ...] = ()) -> None:
    """Load a state dict so that every parameter is filled and nothing is left over.

    Parameters
    ----------
    module
        The model.
    state
        Tensors by the model's own names.
    not_needed
        Prefixes of parameters that features do not depend on; they may be missing, or left over.

    Raises
    ------
    WeightsError
        Naming what is missing, left over or of another shape.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in state and not k.startswith(not_needed or ("\0",))]
    extra = [k for k in state if k not in own and not k.startswith(not_needed or ("\0",))]
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or extra or shapes:
        parts = []
        if missing:
            parts.append(f"{len(missing)} of {len(own)} tensors are missing ({', '.join(missing[:3])} ...)")
        if extra:
            parts.append(f"{len(extra)} are unknown ({', '.join(extra[:3])} ...)")
        if shapes:
            k = shapes[0]
            parts.append(f"{len(shapes)} have another shape ({k}: {tuple(state[k].shape)}, not {tuple(own[k].shape)})")
        raise WeightsError("; ".join(parts) + ". Is it a file for another model or size?")
    module.load_state_dict({k: v for k, v in state.items() if k in own}, strict=not not_needed)


def _build_pretrained(spec: BackboneSpec, bands: tuple[str, ...], size: int) -> FeatureExtractor:
    """Let the model's library load its weights. The seed is another each time, so that a part left random shows."""
    import torch

    assert spec.pretrained is not None
    with torch.random.fork_rng(devices=[]):
        torch.seed()
        try:
            return spec.pretrained(spec, bands, size)
        except EmbedcacheError:
            raise
        except Exception as error:  # libraries raise many kinds without a network, or for names without weights
            raise WeightsError(
                f"the weights of {spec.name!r} could not be had from {spec.package or 'its loader'} "
                f"({_reason(error)}). Pass a file with --weights FILE; --weights random is for trying things out."
            ) from error


def _version_of(spec: BackboneSpec) -> dict[str, str]:
    if not spec.package:
        return {}
    try:
        return {spec.package: importlib.metadata.version(spec.package)}
    except importlib.metadata.PackageNotFoundError:
        raise WeightsError(
            f"backbone {spec.name!r} says that the package {spec.package!r} holds it, which is not installed."
        ) from None


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def _download(spec: BackboneSpec) -> Path:
    if spec.hub is None:
        raise WeightsError(
            f"no weights of {spec.name!r} are published; pass a file with --weights FILE, or --weights random."
        )
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.utils import logging

    hub = spec.hub
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its warnings of each retry would bury our one sentence
    try:
        return Path(hf_hub_download(hub.repo, hub.filename, revision=hub.revision))
    except (OSError, HfHubHTTPError, ValueError) as error:  # OSError: no network, no cached copy
        raise WeightsError(
            f"the weights of {spec.name!r} could not be fetched from the Hugging Face hub "
            f"({type(error).__name__}). Fetch the file {hub.filename!r} of {hub.repo!r} on a machine that reaches it, "
            f"and pass it here with --weights FILE; --weights random is for trying things out."
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
