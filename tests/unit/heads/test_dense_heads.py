"""Heads on maps: TerraTorch's UPerNet to the letter, the linear head's shortcut, initial weights, cost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from embedcache.errors import SettingError
from embedcache.heads import fcn, linear_seg, upernet
from embedcache.heads._layers import initialise
from embedcache.heads._pyramid import JoinedPyramid
from embedcache.heads._reordered import conv_of_resized
from embedcache.train_config import TrainConfig
from embedcache_stores import LevelSpec

Members = list[list[LevelSpec]]
HEADS = {module.SPEC.name: module for module in (upernet, linear_seg, fcn)}
SMALL = TrainConfig(decoder_channels=8)


def member(*shapes: tuple[int, int, int]) -> list[LevelSpec]:
    """Levels of (channels, height, width)."""
    return [LevelSpec(index=i, channels=c, reduction=64 / h, height=h, width=w) for i, (c, h, w) in enumerate(shapes)]


NATIVE = member((4, 16, 16), (8, 8, 8), (16, 4, 4), (24, 2, 2))
PLAIN = member(*[(16, 4, 4)] * 4)
WIDE = member((6, 12, 18), (6, 6, 9), (5, 3, 5), (7, 2, 3))
HIERA_L = member((144, 56, 56), (288, 28, 28), (576, 14, 14), (1152, 7, 7))
PRITHVI_300 = member(*[(1024, 14, 14)] * 4)
SETS: dict[str, Members] = {
    "native": [NATIVE],
    "plain": [PLAIN],
    "odd plain": [member(*[(12, 5, 7)] * 4)],
    "native+plain": [NATIVE, PLAIN],
    "wide": [WIDE],
    "plain+other+plain": [PLAIN, member((6, 12, 12), (6, 6, 6), (5, 3, 3), (7, 2, 2)), PLAIN],
}


def maps_of(members: Members, *, rows: int = 2, seed: int = 0, device: str = "cpu") -> list[list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        [torch.randn(rows, x.channels, x.height, x.width, generator=generator).to(device) for x in levels]
        for levels in members
    ]


def build(name: str, members: Members, config: TrainConfig = SMALL, *, classes: int = 3, seed: int = 0) -> nn.Module:
    decode = HEADS[name].SPEC.decode
    assert decode is not None
    return decode(members, classes, torch.Generator().manual_seed(seed), config)


@pytest.fixture(scope="module")
def terratorch() -> Any:
    """TerraTorch's three parts; the import takes most of a minute."""
    from embedcache.backbones._terratorch import repair_torchvision

    repair_torchvision()
    from terratorch.models.decoders import UperNetDecoder
    from terratorch.models.heads.segmentation_head import SegmentationHead
    from terratorch.models.necks import LearnedInterpolateToPyramidal

    return SimpleNamespace(
        decoder=UperNetDecoder, segmentation_head=SegmentationHead, neck=LearnedInterpolateToPyramidal
    )


class Reference(nn.Module):
    """TerraTorch's neck, decoder and head, wired member by member as its users would."""

    def __init__(self, parts: Any, members: Members, classes: int, config: TrainConfig) -> None:
        super().__init__()
        self.pyramid = nn.Module()
        self.pyramid.necks = nn.ModuleList()
        channels = []
        for levels in members:
            width = [x.channels for x in levels]
            plain = len(levels) == 4 and len({(x.height, x.width) for x in levels}) == 1
            self.pyramid.necks.append(parts.neck(width) if plain else nn.Identity())
            channels.append(parts.neck(width).process_channel_list(width) if plain else width)
        self.decoder = parts.decoder([sum(c) for c in zip(*channels, strict=True)], channels=config.decoder_channels)
        self.head = parts.segmentation_head(config.decoder_channels, classes, dropout=config.dropout)

    def forward(self, maps: list[list[Tensor]]) -> Tensor:
        pyramids = [neck(list(x)) for neck, x in zip(self.pyramid.necks, maps, strict=True)]
        joined = []
        for level in zip(*pyramids, strict=True):
            size = max(x.shape[2:] for x in level)
            joined.append(
                torch.cat([F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in level], dim=1)
            )
        return self.head(self.decoder(joined))


@pytest.mark.parametrize("name", [*SETS, "two levels", "one level"])
def test_upernet_has_terratorchs_parameters_outputs_gradients_and_statistics(terratorch: Any, name: str) -> None:
    members = {**SETS, "two levels": [NATIVE[:2]], "one level": [NATIVE[2:3]]}[name]
    ours = build("upernet", members)
    theirs = Reference(terratorch, members, 3, SMALL)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for step in range(2):  # the second step sees the running statistics of the first
        maps = maps_of(members, rows=3, seed=step)
        for mode in (True, False):
            ours.train(mode)
            theirs.train(mode)
            here, there = ours(maps), theirs(maps)
            torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
            weight = torch.randn(here.shape, generator=torch.Generator().manual_seed(9))
            wanted = torch.autograd.grad((there * weight).sum(), [*theirs.parameters()])
            for (key, _), got, want in zip(
                ours.named_parameters(),
                torch.autograd.grad((here * weight).sum(), [*ours.parameters()]),
                wanted,
                strict=True,
            ):
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4, msg=lambda m, key=key: f"{key}: {m}")
    for (key, got), want in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, msg=lambda m, key=key: f"{key}: {m}")
    assert int(ours.state_dict()["decoder.bottleneck.norm.num_batches_tracked"]) == 2


def test_upernet_with_dropout_has_terratorchs_outputs(terratorch: Any) -> None:
    config = SMALL.with_(dropout=0.3)
    ours, theirs = build("upernet", [NATIVE], config), Reference(terratorch, [NATIVE], 3, config)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        here = ours(maps_of([NATIVE]))
        torch.manual_seed(1)
        torch.testing.assert_close(here, theirs(maps_of([NATIVE])), rtol=1e-5, atol=1e-5)


def test_the_paper_ensembles_channels_and_parameters_are_terratorchs() -> None:
    # the fact sheet's measured values: (1168, 1312, 1600, 2176) channels, 14.78 M parameters with 7 classes
    with torch.device("meta"):
        head = upernet.UPerNetHead([HIERA_L, PRITHVI_300], 7, TrainConfig())
    assert head.pyramid.channels == [144 + 256, 288 + 512, 576 + 1024, 1152 + 1024]
    single = upernet.UPerNetDecoder([144, 288, 576, 1152], 256)
    assert sum(p.numel() for p in single.parameters()) == pytest.approx(10.59e6, rel=1e-3)


@pytest.mark.parametrize("picked", [1, 2, 3])
def test_a_native_pyramid_may_have_fewer_levels(picked: int) -> None:
    members = [NATIVE[4 - picked :], WIDE[4 - picked :]]
    assert build("upernet", members)(maps_of(members)).shape[:2] == (2, 3)


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ([PLAIN[:3]], "needs exactly 4 for that, got 3"),
        ([NATIVE, PLAIN[:2]], "equally many, at least one; they have 4, 2"),
        ([], "they have none"),
        ([[]], "they have 0"),
        ([member(*[(16, 1, 1)] * 4)], "1 x 1 is too small"),
    ],
)
def test_levels_that_make_no_pyramid_are_refused_by_upernet(members: Members, match: str) -> None:
    with pytest.raises(SettingError, match=match):
        build("upernet", members)


@pytest.mark.parametrize("name", ["linear-seg", "fcn"])
def test_other_heads_take_any_levels_but_none_at_all(name: str) -> None:
    for members in ([PLAIN[:3]], [NATIVE, PLAIN[:2]], [PLAIN[:1]], [WIDE]):
        finest = max((x.height, x.width) for m in members for x in m)
        assert build(name, members)(maps_of(members)).shape == (2, 3, *finest)
    with pytest.raises(SettingError, match="at least one level"):
        build(name, [[]])


def concatenated(maps: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    return torch.cat([F.interpolate(x, size=grid, mode="bilinear", align_corners=False) for x in maps], dim=1)


@pytest.mark.parametrize("members", SETS.values(), ids=SETS)
@pytest.mark.parametrize("batch_norm", [True, False])
def test_linear_seg_is_a_convolution_of_the_concatenated_levels(members: Members, batch_norm: bool) -> None:
    config = SMALL.with_(batch_norm=batch_norm)
    head = build("linear-seg", members, config)
    assert isinstance(head, linear_seg.LinearSegHead)
    maps = maps_of(members, seed=3)
    flat = [x * 10**i for i, x in enumerate(x for levels in maps for x in levels)]
    it = iter(flat)
    maps = [[next(it) for _ in levels] for levels in members]
    normed = [F.batch_norm(x, None, None, training=True) for x in flat] if batch_norm else flat
    grid = max((x.shape[2], x.shape[3]) for x in flat)
    want = head.classifier(concatenated(normed, grid))
    got = head(maps)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5 * float(want.detach().abs().max()))
    parameters = [*head.parameters()]
    for a, b in zip(
        torch.autograd.grad(got.square().sum(), parameters),
        torch.autograd.grad(want.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))
    assert len(parameters) == 2


def test_linear_seg_remembers_the_scale_of_training() -> None:
    head = build("linear-seg", [PLAIN], SMALL.with_(batch_norm=True))
    maps = [[3 + 2 * x for x in maps_of([PLAIN], rows=16)[0]]]
    for _ in range(100):
        head(maps)
    got = head(maps)
    torch.testing.assert_close(head.eval()(maps), got, rtol=5e-2, atol=1e-2)


@pytest.mark.parametrize("members", SETS.values(), ids=SETS)
def test_fcn_sums_projected_levels(members: Members) -> None:
    """The sum of projections is the 1x1 convolution of the concatenation that its docstring says it is."""
    head = build("fcn", members).eval()
    assert isinstance(head, fcn.FCNHead)
    maps = maps_of(members)
    flat = [x for levels in maps for x in levels]
    weight = torch.cat([p[0].weight for p in head.projections], dim=1)  # type: ignore[index]
    joined = F.conv2d(concatenated(flat, max((x.shape[2], x.shape[3]) for x in flat)), weight)
    want = head.classifier(head.convs((joined / (1 + 1e-5) ** 0.5).relu()))  # running statistics are still 0 and 1
    torch.testing.assert_close(head(maps), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_all_initial_weights_come_from_the_generator(name: str) -> None:
    members = [NATIVE, PLAIN]
    before = torch.random.get_rng_state()
    first, same, other = (build(name, members, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(first[k], same[k]) for k in first)
    convolutions = [k for k in first if first[k].ndim == 4]
    assert all(not torch.equal(first[k], other[k]) for k in convolutions)
    for a, b in itertools.combinations((first[k].flatten()[:8] for k in convolutions), 2):
        assert not torch.equal(a, b)


@pytest.mark.parametrize("name", HEADS)
def test_initial_weights_have_torchs_distributions(name: str) -> None:
    head = build(name, [NATIVE, PLAIN], SMALL.with_(decoder_channels=64, batch_norm=True))
    for layer in head.modules():
        if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            continue
        reference = type(layer)(
            layer.in_channels, layer.out_channels, layer.kernel_size, bias=layer.bias is not None
        )  # torch's own, from the global generator
        assert layer.weight.abs().max() <= reference.weight.shape[1:].numel() ** -0.5
        assert float(layer.weight.detach().std()) == pytest.approx(float(reference.weight.detach().std()), rel=0.2)
        assert (layer.bias is None) == (reference.bias is None)
    norms = [x for x in head.modules() if isinstance(x, nn.BatchNorm2d)]
    assert norms
    for norm in norms:
        assert (norm.running_mean == 0).all()
        assert (norm.running_var == 1).all()
        assert int(norm.num_batches_tracked) == 0
        assert norm.weight is None or ((norm.weight == 1).all() and (norm.bias == 0).all())


def test_a_layer_without_defined_initial_weights_is_refused() -> None:
    with pytest.raises(TypeError, match="LayerNorm"):
        initialise(nn.LayerNorm(3), torch.Generator())


@pytest.mark.parametrize("name", HEADS)
def test_maps_in_channels_last_give_the_same_logits_in_channels_last(name: str) -> None:
    members = [NATIVE, WIDE]
    head = build(name, members).eval()
    maps = maps_of(members)
    last = [[x.to(memory_format=torch.channels_last) for x in levels] for levels in maps]
    out = head.to(memory_format=torch.channels_last)(last)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, build(name, members).eval()(maps), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_learns_a_mask(name: str) -> None:
    members = [NATIVE, PLAIN]
    head, maps = build(name, members), maps_of(members, rows=4)
    mask = (maps[0][0][:, 0] > 0).long()
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-2)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(head(maps), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.6 * losses[0]


def flops(head: nn.Module, members: Members) -> int:
    with FlopCounterMode(display=False) as counter:
        head.to("meta")(maps_of(members, device="meta"))
    return counter.get_total_flops() // 2  # of two samples


@pytest.mark.parametrize(
    ("small", "large"), [((1, 1), (4, 4)), ((7, 7), (14, 14)), ((5, 3), (9, 12)), ((6, 6), (6, 6))]
)
def test_a_convolution_of_an_enlarged_map_is_computed_on_the_small_one(
    small: tuple[int, int], large: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, *small, dtype=torch.float32, requires_grad=True)
    weight = torch.randn(5, 4, 3, 3, requires_grad=True)
    enlarged = F.interpolate(x, size=large, mode="bilinear", align_corners=True)
    want = F.conv2d(enlarged, weight, padding=1)
    got = conv_of_resized(x, weight, large)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for a, b in zip(
        torch.autograd.grad(got.square().sum(), [x, weight]),
        torch.autograd.grad(want.square().sum(), [x, weight]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_fcn_costs_a_fifth_of_upernet_at_most_and_linear_seg_less() -> None:
    for members in ([HIERA_L], [PRITHVI_300], [HIERA_L, PRITHVI_300]):
        cost = {name: flops(build(name, members, TrainConfig(), classes=7), members) for name in HEADS}
        assert cost["fcn"] * 5 <= cost["upernet"]
        assert cost["linear-seg"] < cost["fcn"]


def test_linear_seg_costs_less_than_its_concatenated_form() -> None:
    head = build("linear-seg", [HIERA_L], classes=7)
    positions, channels = 56 * 56, sum(x.channels for x in HIERA_L)
    assert flops(head, [HIERA_L]) * 5 < 2 * positions * channels * 7


def test_joined_levels_are_the_ensembles() -> None:
    """The join is that of the lazy view: finest grid of each level, members in order."""
    from embedcache.ensemble import resize_block

    coarse = member((3, 8, 8), (5, 4, 4), (2, 2, 2), (4, 1, 1))
    maps = maps_of([coarse, NATIVE])
    joined = JoinedPyramid([coarse, NATIVE])(maps)
    for a, b, got in zip(*maps, joined, strict=True):
        want = torch.cat([torch.from_numpy(resize_block(a.numpy(), b.shape[2], b.shape[3])), b], dim=1)
        torch.testing.assert_close(got, want, rtol=0, atol=0)
