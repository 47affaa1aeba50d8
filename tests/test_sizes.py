from __future__ import annotations

import math
from dataclasses import replace

import pytest

from models.count import count_parameters
from models.sizes import FamilyRule, nearest_shape

FIXED_DEPTH = FamilyRule(8, 8 / 3, 257, 128, "swiglu", True, False, n_layer=2, n_head=2)
BY_ASPECT = FamilyRule(64, 8 / 3, 32_768, 2_048, "swiglu", True, False, aspect_ratio=64.0, head_size=64)


def params(shape) -> int:
    return count_parameters(shape).non_embedding


@pytest.mark.parametrize("rule", [FIXED_DEPTH, BY_ASPECT], ids=["fixed depth", "by aspect"])
def test_the_nearest_shape_is_the_nearest_of_the_whole_family(rule):
    family = [
        shape for width in range(rule.width_step, 4096, rule.width_step) if (shape := rule.shape(width))
    ]
    sizes = [params(shape) for shape in family]
    assert sizes == sorted(set(sizes))  # a wider member is a larger one
    for i in range(40):
        wanted = sizes[0] * (sizes[-1] / sizes[0]) ** (i / 39)
        best = min(family, key=lambda shape: abs(math.log(params(shape) / wanted)))
        assert nearest_shape(rule, wanted) == best
    assert [nearest_shape(rule, size) for size in sizes[:30]] == family[:30]  # a member is nearest to itself


def test_members_are_what_the_rule_says():
    for width in range(64, 1025, 64):
        shape = BY_ASPECT.shape(width)
        assert (shape.n_layer, shape.head_size) == (width // 64, 64)
        assert shape.d_ff % 64 == 0 and abs(shape.d_ff - 8 / 3 * width) <= 32
        assert (shape.vocab_size, shape.seq_len, shape.activation) == (32_768, 2_048, "swiglu")
    shape = FIXED_DEPTH.shape(48)
    assert (shape.n_layer, shape.n_head, shape.head_size) == (2, 2, 24)


def test_depth_has_no_jumps_where_it_follows_width():
    assert BY_ASPECT.shape(96) is None  # one layer and a half
    assert replace(BY_ASPECT, head_size=128).shape(64) is None  # half a head
    assert replace(FIXED_DEPTH, n_head=8).shape(24) is None  # heads of 3, which rotary positions can't turn


@pytest.mark.parametrize("factor", [0.45, 2.2])
def test_a_size_beyond_the_family_is_refused_with_what_there_is(factor):
    widest = replace(FIXED_DEPTH, width_step=65_536, ff_ratio=1.0)  # a family of one
    wanted = factor * params(widest.shape(65_536))
    with pytest.raises(ValueError, match=r"no shape near .*the nearest has .*d_model=65536"):
        nearest_shape(widest, wanted)
    assert (
        nearest_shape(widest, params(widest.shape(65_536)) * (0.55 if factor < 1 else 1.9)).d_model == 65_536
    )


def test_a_family_without_members_is_refused():
    with pytest.raises(ValueError, match="no width up to"):
        nearest_shape(replace(BY_ASPECT, aspect_ratio=0.3, width_step=65_536), 1e6)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"aspect_ratio": 64.0}, "n_layer or aspect_ratio"),
        ({"n_layer": None}, "n_layer or aspect_ratio"),
        ({"head_size": 16}, "n_head or head_size"),
        ({"n_head": None}, "n_head or head_size"),
        ({"n_layer": 0}, "n_layer must be positive, not 0"),
        ({"width_step": -8}, "width_step must be positive"),
        ({"ff_ratio": 0.0}, "ff_ratio must be positive"),
    ],
)
def test_a_rule_that_is_none_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(FIXED_DEPTH, **change)
