"""Any backbone of TerraTorch's registry: built and run once on zeros, to work out what it takes and gives."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from embedcache.backbones._known_inputs import KnownInput, chosen_input, known_input
from embedcache.backbones._layout import Layout, work_out
from embedcache.backbones._spec import BackboneSpec, FeatureExtractor, Features
from embedcache.backbones._terratorch import terratorch_registry
from embedcache.backbones._vit import four_blocks
from embedcache.backbones._weights import fill
from embedcache.errors import SettingError, WeightsError, unknown_name

if TYPE_CHECKING:
    import torch

_EVERY_OUTPUT = {"out_indices": list(range(64))}
"""For torchgeo's models behind TerraTorch, which give their last output unless asked for more."""
_CLASSIFIERS = ("fc.", "head.", "classifier.")
"""Left over in published files; no feature passes through them."""
_BATCH = 2


@dataclass(frozen=True)
class _Recipe:
    """How a backbone is built and read, as it was worked out."""

    name: str
    options: Mapping[str, Any]
    key: str | None
    layout: Layout
    unused: tuple[str, ...]
    """Parameters that no feature depends on."""

    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks of a plain vision transformer that were asked for, where only some were."""
        asked = self.options.get("out_indices", ())
        return () if len(asked) == len(_EVERY_OUTPUT["out_indices"]) else tuple(asked)


class _Adapted:
    def __init__(self, module: torch.nn.Module, recipe: _Recipe) -> None:
        self.module = module
        self.unused = recipe.unused
        self._recipe = recipe

    def __call__(
        self, images: torch.Tensor, time: torch.Tensor | None = None, location: torch.Tensor | None = None
    ) -> Features:
        key = self._recipe.key
        return self._recipe.layout.features(self.module({key: images} if key else images))


def adapt(reference: str, input_size: int | None = None) -> BackboneSpec:
    """Work out the spec of ``terratorch:NAME[:BANDS]``.

    Parameters
    ----------
    reference
        NAME as in TerraTorch's registry (``timm_...`` for timm's); BANDS in the model's order, as ``RED,GREEN`` or with
        statistics in DN, ``RED=1433/2178``, where TerraTorch does not say how they are normalised.
    input_size
        Height and width in px; None is 224, or what timm says where the backbone does not take that.

    Raises
    ------
    UnknownNameError
        If the registry has no such backbone.
    SettingError
        If its bands must be said, or it cannot be built and run for them.
    """
    _, _, rest = reference.partition(":")
    name, _, asked = rest.partition(":")
    registry = terratorch_registry()
    plain, constructor, config = _find(registry, name)
    known = chosen_input(name, known_input(plain, constructor, config), asked)
    size = input_size or 224
    try:
        module, recipe = _work_out(registry, name, constructor, known, size)
    except SettingError:
        if input_size or config is None or config.input_size[-1] == size:
            raise
        size = config.input_size[-1]
        module, recipe = _work_out(registry, name, constructor, known, size)
    parameters = sum(p.numel() for p in module.parameters()) / 1e6
    levels = recipe.layout.levels
    blocks = f"; blocks {', '.join(map(str, recipe.blocks))}" if recipe.blocks else ""
    return BackboneSpec(
        name=f"terratorch_{name}",
        title=f"{name} of TerraTorch's registry",
        bands=known.bands,
        size_multiple=max(size // o.grid for o in levels),
        level_facts=tuple((o.channels, size // o.grid) for o in levels),
        pooled=recipe.layout.pooled,
        parameters_m=round(parameters, 3),
        licence="its authors'",
        citation=f"{name}, through TerraTorch, arXiv 2503.20563",
        hub=None,
        package="timm" if constructor is None else "terratorch",
        load=partial(_load, recipe),
        pretrained=partial(_pretrained, recipe),
        input_size=size,
        token_px=size // levels[-1].grid if not recipe.layout.pyramid else 16,
        version=f"outputs {', '.join(str(o.number) for o in levels)}; {levels[-1].kind} after {levels[-1].prefix}"
        + (f"; input {known.key}" if known.key else "")
        + blocks,
        reference=reference,
        notes=(
            f"worked out by running {name} once at {size} px: {recipe.layout.describe()}{blocks}",
            f"bands {', '.join(b.name for b in known.bands)}: {known.source}",
            *((f"'{plain}' without 'terratorch:' also takes time and location",) if plain.endswith("_tl") else ()),
        ),
    )


def _find(registry: Any, name: str) -> tuple[str, Any, Any]:
    """Return a backbone's plain name, what builds it (None: timm) and timm's pretrained configuration."""
    import timm

    own = registry._sources["terratorch"]
    plain = name.removeprefix("terratorch_")
    if plain in own:
        return plain, own[plain], None
    plain = name.removeprefix("timm_")
    if name.startswith("terratorch_") or not timm.is_model(plain.split(".")[0]):
        known = [*own, *(f"timm_{n}" for n in timm.list_models())]
        raise unknown_name("TerraTorch backbone", name, known, "TerraTorch's BACKBONE_REGISTRY lists them all.")
    return plain, None, timm.get_pretrained_cfg(plain, allow_unregistered=True)


def _work_out(
    registry: Any, name: str, constructor: Any, known: KnownInput, size: int
) -> tuple[torch.nn.Module, _Recipe]:
    """Build a backbone in the first way that runs at this size."""
    import torch

    problem: Exception | None = None
    for way in _ways(constructor, known, size):
        options = way
        try:
            with torch.random.fork_rng(devices=[]), _quiet():
                torch.manual_seed(0)
                module = _build(registry, name, options, pretrained=False)
                recipe = _run(module, name, options, known, size)
                if constructor is None and (more := _evenly(module, recipe)):
                    options = {**way, **more}
                    module = _build(registry, name, options, pretrained=False)
                    recipe = _run(module, name, options, known, size)
            return module, recipe
        except Exception as error:  # models refuse sizes, bands and options in any way they like
            problem = problem or error
    reason = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
    raise SettingError(
        f"TerraTorch's {name!r} cannot be run on {len(known.bands)} bands at {size} px: {reason}"
    ) from problem


def _ways(constructor: Any, known: KnownInput, size: int) -> Iterator[dict[str, Any]]:
    """Yield options to build a backbone with, the likeliest to work first."""
    bands = [b.name for b in known.bands]
    if constructor is None:
        ways: list[dict[str, Any]] = [{"in_chans": len(bands)}, {"bands": bands}, {}]
    else:
        takes = inspect.signature(constructor).parameters
        if "model_bands" in takes:
            ways = [{"model_bands": bands, **_EVERY_OUTPUT}, {"model_bands": bands}]
        elif known.key:
            ways = [{"modalities": [known.key], **({"bands": {known.key: bands}} if known.own_choice else {})}]
        elif "bands" in takes:
            ways = [{"bands": bands}]
        else:
            needed = {"ckpt_path": None} if "ckpt_path" in takes else {}
            ways = [{**needed, "in_chans": len(bands)}, needed]
    for options in ways:
        yield options
        yield {**options, "img_size": size}


def _build(registry: Any, name: str, options: Mapping[str, Any], *, pretrained: bool) -> torch.nn.Module:
    more = {"pretrained": True} if pretrained else {}  # not every constructor knows the word
    module: torch.nn.Module = registry.build(name, **options, **more)
    return module.eval()


def _run(module: torch.nn.Module, name: str, options: Mapping[str, Any], known: KnownInput, size: int) -> _Recipe:
    """Run a backbone on zeros, and find the parameters that no feature depends on."""
    import torch

    images = torch.zeros(_BATCH, len(known.bands), size, size)
    named = dict(module.named_parameters())
    module.requires_grad_(True)
    with torch.enable_grad():
        outputs = module({known.key: images} if known.key else images)
        channels = getattr(module, "out_channels", ())
        layout = work_out(outputs, _BATCH, size, channels if isinstance(channels, list | tuple) else ())
        features = layout.features(outputs)
        total = torch.stack([t.float().sum() for t in (*features.levels, *features.pooled.values())]).sum()
        slopes = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    module.requires_grad_(False)
    unused = tuple(k for k, slope in zip(named, slopes, strict=True) if slope is None)
    return _Recipe(name, dict(options), known.key, layout, unused)


def _evenly(module: torch.nn.Module, recipe: _Recipe) -> dict[str, Any]:
    """Options for four evenly spaced blocks of a plain vision transformer, of which timm gives the last three."""
    import torch

    if recipe.layout.pyramid:
        return {}
    stacks = [m for k, m in module.named_modules() if k.split(".")[-1] == "blocks" and hasattr(m, "__len__")]
    depth = len(stacks[0]) if stacks and isinstance(stacks[0], torch.nn.Module) else 0  # type: ignore[arg-type]
    return {"out_indices": list(four_blocks(depth))} if depth >= 4 else {}


def _load(
    recipe: _Recipe, spec: BackboneSpec, bands: tuple[str, ...], input_size: int, state: Mapping[str, Any] | None
) -> FeatureExtractor:
    with _quiet():
        module = _build(terratorch_registry(), recipe.name, recipe.options, pretrained=False)
    if state is not None:
        _fill(module, dict(state), recipe.unused)
    return _Adapted(module, recipe)


def _pretrained(recipe: _Recipe, spec: BackboneSpec, bands: tuple[str, ...], input_size: int) -> FeatureExtractor:
    with _quiet():
        module = _build(terratorch_registry(), recipe.name, recipe.options, pretrained=True)
    return _Adapted(module, recipe)


def _fill(module: torch.nn.Module, state: dict[str, Any], unused: tuple[str, ...]) -> None:
    """Fill a model from a file under its own names, or under those without its wrapper's prefix."""
    own = module.state_dict()
    prefixes = {k.partition(".")[0] for k in own}
    if len(prefixes) == 1 and not any(k in own for k in state):
        state = {f"{next(iter(prefixes))}.{k}": v for k, v in state.items()}
    inner = [k.partition(".")[2] if len(prefixes) == 1 else k for k in state]
    left = {k for k, short in zip(state, inner, strict=True) if k not in own and short.startswith(_CLASSIFIERS)}
    state = {k: v for k, v in state.items() if k not in left and k not in unused}
    if not state:
        raise WeightsError("it holds nothing that the model has.")
    fill(module, state, not_needed=unused)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' remarks to themselves: what matters is checked here, and said in one sentence."""
    import logging

    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
