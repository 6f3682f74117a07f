"""What is worked out from the shapes of a model's outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from embedcache.backbones._layout import tensors_of, work_out
from embedcache.errors import SettingError


def zeros(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.zeros(2, *shape) for shape in shapes]


def read(outputs: Any, size: int = 224, channels: tuple[int, ...] = ()) -> Any:
    layout = work_out(outputs, 2, size, channels)
    return layout, [(o.number, o.kind, o.prefix, o.channels, o.grid) for o in layout.levels]


def test_twelve_blocks_of_tokens_with_a_class_token() -> None:
    layout, levels = read(zeros(*[(197, 192)] * 12))
    assert levels == [(i, "tokens", 1, 192, 14) for i in (2, 5, 8, 11)]
    assert layout.pooled == ("cls", "mean")


@pytest.mark.parametrize(
    ("tokens", "size", "prefix", "grid"),
    [(196, 224, 0, 14), (197, 224, 1, 14), (201, 224, 5, 14), (257, 224, 1, 16), (256, 256, 0, 16), (65, 64, 1, 8)],
)
def test_prefix_tokens_are_counted(tokens: int, size: int, prefix: int, grid: int) -> None:
    layout, levels = read(zeros((tokens, 8)), size)
    assert levels == [(0, "tokens", prefix, 8, grid)]
    assert layout.pooled == (("cls", "mean") if prefix else ("mean",))


def test_a_pyramid_of_five_gives_its_four_coarsest() -> None:
    layout, levels = read(zeros((64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)))
    assert [o[0] for o in levels] == [1, 2, 3, 4]
    assert layout.pyramid


def test_of_several_outputs_on_one_grid_the_deepest_is_taken() -> None:
    _, levels = read(tuple(zeros((56, 56, 96), (56, 56, 96), (28, 28, 192), (28, 28, 192))))
    assert levels == [(1, "channels last", 0, 96, 56), (3, "channels last", 0, 192, 28)]


def test_pyramids_come_finest_first_whatever_the_models_order() -> None:
    assert [o[4] for o in read(zeros((8, 7, 7), (4, 14, 14)))[1]] == [14, 7]


def test_where_shapes_leave_a_doubt_the_model_is_asked() -> None:
    assert read(zeros((14, 14, 14)))[1][0][1] == "channels first"
    assert read(zeros((7, 7, 14)), channels=(14,))[1][0][1] == "channels last"


@pytest.mark.parametrize("nest", [lambda t: t, lambda t: [t], lambda t: (t,), lambda t: {"x": t}, lambda t: [{"x": t}]])
def test_tensor_list_tuple_mapping_are_one(nest: Any) -> None:
    (only,) = zeros((49, 8))
    assert tensors_of(nest(only))[0] is only
    assert read(nest(only))[1] == [(0, "tokens", 0, 8, 7)]


def test_features_are_read_as_the_layout_says() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(2, 17, 5, generator=generator)
    features = work_out(tokens, 2, 64).features(tokens)
    assert torch.equal(features.levels[0][1, :, 2, 3], tokens[1, 1 + 2 * 4 + 3])
    assert torch.equal(features.pooled["cls"], tokens[:, 0])
    torch.testing.assert_close(features.pooled["mean"], tokens[:, 1:].mean(dim=1))
    last = torch.randn(2, 4, 4, 5, generator=generator)
    assert torch.equal(work_out(last, 2, 64).features(last).levels[0], last.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("outputs", "said"),
    [
        (zeros((1000,)), "no square feature map is found"),
        ([], "gives no tensor"),
        (zeros((3, 14, 7)), "no square feature map"),
        (zeros((8, 13, 13)), "13 px from 224 px"),
        ([torch.zeros(1, 197, 8)], "no square feature map"),
    ],
)
def test_what_is_no_feature_map_is_said(outputs: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        work_out(outputs, 2, 224)


def test_what_was_worked_out_is_said_in_a_line() -> None:
    said = work_out(zeros(*[(197, 192)] * 12), 2, 224).describe()
    assert "of 12 outputs (tokens, the first a class token; one grid) the levels are 3, 6, 9, 12: 192x14x14" in said
