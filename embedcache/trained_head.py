"""Trained heads, loaded from a result record and the weights beside it, and checked against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embedcache.errors import SettingError, WeightsError
from embedcache.evaluation.record import RunRecord, load_record
from embedcache.heads._registry import get_head
from embedcache.heads._spec import HeadSpec
from embedcache.train_config import TrainConfig, channel_range
from embedcache_stores.schema import LevelSpec

if TYPE_CHECKING:
    import torch

    from embedcache.dense_data import Maps

State = Mapping[str, "torch.Tensor"]
Members = Sequence[Sequence[LevelSpec]]
_SCALE = "scale."


@dataclass(frozen=True)
class TrainedHead:
    """A head that only answers: :meth:`logits` of vectors, or :meth:`map_logits` of feature maps."""

    config: TrainConfig
    module: torch.nn.Module
    scale: State
    """``mean`` and ``std`` of vectors, or ``<store>/<level>.mean`` and ``.factor`` of maps; empty where neither."""
    device: str
    channels: int = 0
    """Length of the vectors it reads; 0 for a head on maps."""
    members: Members = ()
    """Levels of each member that it reads; empty for a head on vectors."""
    names: tuple[str, ...] = ()
    """Names of the stores it reads, in order."""
    stacked: bool = False

    @property
    def reads_maps(self) -> bool:
        """Whether it labels pixels."""
        return bool(self.members)

    def logits(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return ``(b, class)`` float32 of vectors ``(b, channel)`` as stored.

        Raises
        ------
        SettingError
            If it reads maps, or vectors of another length.
        """
        import torch

        from embedcache.dense_training import arithmetic

        if self.reads_maps or vectors.ndim != 2 or vectors.shape[1] != self.channels:
            wanted = "feature maps" if self.reads_maps else f"vectors of {self.channels} channels"
            raise SettingError(f"head {self.config.head!r} reads {wanted}, and was given {tuple(vectors.shape)}.")
        x = vectors.to(self.device, torch.float32)
        if self.scale:
            x = (x - self.scale["mean"]) / self.scale["std"]
        if self.config.precision == "bf16":
            x = x.to(torch.bfloat16)
        with torch.inference_mode(), arithmetic(self.config, self.device):
            out: torch.Tensor = self.module(x)
        return (out[0] if self.stacked else out).float()

    def map_logits(self, maps: Maps, size: Sequence[int]) -> torch.Tensor:
        """Return ``(b, class, y, x)`` float32 on a grid ``size`` of maps as stored, member by member, level by level.

        Raises
        ------
        SettingError
            If it reads vectors, or maps of other channels or grids.
        """
        import torch

        from embedcache.dense_training import arithmetic, full_size_logits

        found = [[tuple(x.shape[1:]) for x in levels] for levels in maps]
        wanted = [[(x.channels, x.height, x.width) for x in levels] for levels in self.members]
        if found != wanted:
            raise SettingError(
                f"head {self.config.head!r} reads maps of {wanted or 'no shape'}, and was given {found}."
            )
        ready = [
            [self._ready(x, f"{name}/{level.name}") for x, level in zip(some, levels, strict=True)]
            for name, some, levels in zip(self.names, maps, self.members, strict=True)
        ]
        with torch.inference_mode(), arithmetic(self.config, self.device):
            return full_size_logits(self.module, ready, size)

    def _ready(self, maps: torch.Tensor, key: str) -> torch.Tensor:
        import torch

        x = maps.to(self.device, torch.float32)
        if not self.scale:
            return x
        wide = (1, -1, 1, 1)
        return (x - self.scale[f"{key}.mean"].view(wide)) * self.scale[f"{key}.factor"].view(wide)


def load_head(path: Path, device: str = "cpu") -> tuple[RunRecord, TrainedHead]:
    """Load the head of a result record; its weights are the ``.safetensors`` of the same name beside it.

    Raises
    ------
    RecordError
        If the file is no record.
    SettingError
        If its run was given up, or it is of another version.
    WeightsError
        If the weights are missing, damaged, or another head's.
    """
    record = load_record(path)
    if record.failed:
        raise SettingError(f"the run of {str(path)!r} was given up, so it left no head: {record.failed}.")
    file = path.with_suffix(".safetensors")
    state, said = _read_weights(file)
    config = TrainConfig.from_json(record.config)
    expected = {"head": config.head, "features": record.features, "classes": "|".join(record.class_names)}
    wrong = [key for key, value in expected.items() if said.get(key, value) != value]
    if wrong:
        raise WeightsError(f"{str(file)!r} is of other {wrong[0]} than its record says: they are of different runs.")
    names = tuple(record.features.split("+"))
    members = _members(record, names) if record.grids else ()
    channels = 0 if members else _channels(record, config)
    head = head_from_state(
        config, state, names, record.class_names, channels=channels, members=members, device=device, where=str(file)
    )
    return record, head


def head_from_state(
    config: TrainConfig,
    state: State,
    names: Sequence[str],
    class_names: Sequence[str],
    *,
    channels: int = 0,
    members: Members = (),
    device: str = "cpu",
    where: str = "the state",
) -> TrainedHead:
    """Build a head around trained weights; every weight must be there, fit, and belong to it.

    Parameters
    ----------
    config
        What it was trained with.
    state
        As in :class:`embedcache.training.TrainResult`: weights, and the scale of its input.
    names
        Of the stores it reads, in order.
    class_names
        In index order.
    channels, members
        What it reads: vectors of so many channels, or these levels.
    device
        Torch device to answer on.
    where
        Names the state in errors.

    Raises
    ------
    WeightsError
        Naming what does not fit.
    """
    spec = get_head(config.head)
    weights = {k: v for k, v in state.items() if not k.startswith(_SCALE)}
    scale = {k.removeprefix(_SCALE): v for k, v in state.items() if k.startswith(_SCALE)}
    wanted = _scale_shapes(config, channels, members, names)
    found = {k: tuple(v.shape) for k, v in scale.items()}
    if found != wanted:
        odd = next(k for k in {**wanted, **found} if wanted.get(k) != found.get(k))
        raise WeightsError(f"{where!r}: {_SCALE}{odd} is {found.get(odd, 'missing')}, not {wanted.get(odd, 'there')}.")
    try:
        module = _build(spec, weights, channels, members, len(class_names), config)
    except (RuntimeError, AttributeError) as error:
        first = str(error).splitlines()[-1].strip()
        raise WeightsError(
            f"{where!r} does not hold the weights of head {config.head!r} as recorded: {first}"
        ) from error
    return TrainedHead(
        config=config,
        module=module.to(device).eval(),
        scale={k: v.to(device) for k, v in scale.items()},
        device=device,
        channels=channels,
        members=members,
        names=tuple(names),
        stacked=spec.stack is not None,
    )


def _read_weights(file: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise WeightsError(
            f"{str(file)!r} does not exist: a record's weights lie beside it; train it again with 'embedcache "
            "train-head --force'."
        )
    try:
        with safe_open(file, framework="pt") as opened:
            return {k: opened.get_tensor(k) for k in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{str(file)!r} cannot be read as safetensors ({error}).") from error


def _channels(record: RunRecord, config: TrainConfig) -> int:
    every = max((int(stop) for _, stop in record.channels.values()), default=0)
    return len(range(every)[channel_range(config.channels)]) if config.channels else every


def _members(record: RunRecord, names: Sequence[str]) -> Members:
    """Levels of each store as the record lists them; how they relate to the input in px is not recorded."""
    out: dict[str, list[LevelSpec]] = {name: [] for name in names}
    for key, (channels, height, width) in record.grids.items():
        name, _, level = key.rpartition("/")
        if name not in out or not level.removeprefix("level_").isdecimal():
            raise SettingError(f"the record lists maps of {key!r}, which is no level of {record.features!r}.")
        index = int(level.removeprefix("level_"))
        out[name].append(LevelSpec(index=index, channels=channels, reduction=float("nan"), height=height, width=width))
    return tuple(tuple(levels) for levels in out.values())


def _scale_shapes(
    config: TrainConfig, channels: int, members: Members, names: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    if not config.standardise:
        return {}
    if not members:
        return {"mean": (channels,), "std": (channels,)}
    return {
        f"{name}/{level.name}.{part}": (level.channels,)
        for name, levels in zip(names, members, strict=True)
        for level in levels
        for part in ("mean", "factor")
    }


def _build(
    spec: HeadSpec, weights: State, channels: int, members: Members, classes: int, config: TrainConfig
) -> torch.nn.Module:
    import torch

    if spec.decode is not None:
        module = spec.decode(members, classes, torch.Generator(), config)
        for parameter in module.parameters():
            if parameter.ndim == 4:  # as in training: faster, and the same arithmetic
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        module.load_state_dict(dict(weights), strict=True)
        return module
    if spec.stack is not None:
        module = spec.stack(channels, classes, [torch.Generator()], config)
        module.load_state_dict({k: v[None] for k, v in weights.items()}, strict=True)
        return module
    return _fitted(spec, weights, channels, classes, config)


def _fitted(spec: HeadSpec, weights: State, channels: int, classes: int, config: TrainConfig) -> torch.nn.Module:
    """Fit a head to two made-up vectors for its form, and put the weights in; nearest neighbours hold any number."""
    import torch

    assert spec.fit is not None
    x = torch.eye(2, channels)
    module = spec.fit(x, torch.tensor([0, classes - 1]), classes, config)
    made = module.state_dict()
    if sorted(made) != sorted(weights):
        raise RuntimeError(f"it has {', '.join(sorted(weights))}, not {', '.join(sorted(made))}")
    for name, tensor in weights.items():
        old = made[name]
        rows = old.shape[0] if isinstance(getattr(module, name), torch.nn.Parameter) else tensor.shape[0]
        if tensor.shape != (rows, *old.shape[1:]):
            raise RuntimeError(f"{name} is {tuple(tensor.shape)}, not {(rows, *old.shape[1:])}")
        kept = torch.nn.Parameter(tensor, requires_grad=False)
        setattr(module, name, kept if isinstance(getattr(module, name), torch.nn.Parameter) else tensor)
    return module
