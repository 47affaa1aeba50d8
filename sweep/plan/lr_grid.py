"""The lr grid: rate x width at one token count, under one parametrisation or several.

Yang et al. 2022 (arXiv 2203.03466), figure 1: batch, steps and data stay, only width and rate differ.
The number of tokens is fixed, not the tokens a parameter: the best rate moves with the number of steps,
and a drift with the width could not be told from one with the length of the run. A recipe's rate follows
D alone, so its rate is the middle of every width's rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from models.config import DecoderShape
from sweep.plan.grids import Cell, Extension, family, seeds
from sweep.plan.rules import UNUSED, recipe
from sweep.plan.schema import ConfigError, SweepConfig, with_values

Steps = Mapping[int, Sequence[float]]
"""Losses of one width, one for each seed, by how many steps its rate is from the recipe's."""


def lr_cells(config: SweepConfig, vocab_size: int) -> Iterator[Cell]:
    """Width by width, rates from the lowest to the highest.

    Raises ConfigError for a width that the family of shapes has no member of, and for a rule that leaves
    no rate to vary.
    """
    grid = config.grid
    if "optim.lr" in UNUSED[config.optim.rule]:
        raise ConfigError(
            f"optim.rule={config.optim.rule} sets its own rate, so grid=lr has none to vary; say power, sqrt or "
            "constant. Nothing was launched."
        )
    for param in grid.param:
        for width in grid.widths:
            shape = _shape(config, vocab_size, width)
            for step in _planned_steps(grid.rates):
                for seed in seeds(config):
                    yield _cell(config, shape, param, step, seed)


def lr_extensions(
    config: SweepConfig, vocab_size: int, settled: Sequence[tuple[Cell, float | None]]
) -> list[Extension]:
    """For each width whose best rate is the lowest or the highest tried, one rate further out; see
    `sweep.plan.grids.extensions`. A rate at which a run has diverged or failed is tried, and is not the best."""
    grid = config.grid
    found = []
    for param in grid.param:
        for width in grid.widths:
            tried: dict[int, list[float]] = {}
            for cell, loss in settled:
                if cell.group == rate_group(param, width):
                    tried.setdefault(_step_of(config, cell), []).append(math.inf if loss is None else loss)
            if len(tried) < 2 or min(map(min, tried.values())) == math.inf:
                continue
            extension = _extension(config, _shape(config, vocab_size, width), param, tried)
            if extension is not None:
                found.append(extension)
    return found


def rate_group(param: str, width: int) -> str:
    return f"{param} d_model={width}"


def _extension(config: SweepConfig, shape: DecoderShape, param: str, tried: Steps) -> Extension | None:
    """None where the best rate lies between others."""
    grid, ordered = config.grid, sorted(tried)
    best = min(ordered, key=lambda step: sum(tried[step]) / len(tried[step]))
    if best == ordered[0]:
        side, further = "lowest", best - 1
    elif best == ordered[-1]:
        side, further = "highest", best + 1
    else:
        return None
    cells = tuple(_cell(config, shape, param, further, seed) for seed in seeds(config))
    where = f"{param}, width {shape.d_model}: its best rate ({_rate(config, cells[0], best):.3g}) is the {side} tried"
    if len(tried) - grid.rates >= grid.extensions:
        return Extension((), f"{where}; {grid.extensions} rates were added already, so it stays")
    return Extension(cells, f"{where}; adding {_rate(config, cells[0], further):.3g}")


def _planned_steps(rates: int) -> range:
    """Around 0; of an even number the upper half has one more."""
    return range(-((rates - 1) // 2), rates // 2 + 1)


def _cell(config: SweepConfig, shape: DecoderShape, param: str, step: int, seed: int) -> Cell:
    rate = config.optim.lr * 2.0 ** (config.grid.octaves * step)
    varied = with_values(config, {"param": param, "optim.lr": rate})
    return Cell(varied, shape, config.grid.tokens, seed, rate_group(param, shape.d_model))


def _step_of(config: SweepConfig, cell: Cell) -> int:
    return round(math.log2(cell.config.optim.lr / config.optim.lr) / config.grid.octaves)


def _rate(config: SweepConfig, cell: Cell, step: int) -> float:
    """The peak rate of a cell's run, `step` steps from the recipe's own."""
    own = recipe(config.optim, cell.params, cell.tokens).lr
    return own * 2.0 ** (config.grid.octaves * step)


def _shape(config: SweepConfig, vocab_size: int, width: int) -> DecoderShape:
    shape = family(config, vocab_size).shape(width)
    if shape is None:
        raise ConfigError(
            f"grid.widths: {width} gives no whole number of layers and heads of an even size under model="
            f"{{n_layer: {config.model.n_layer}, aspect_ratio: {config.model.aspect_ratio}, n_head: "
            f"{config.model.n_head}, head_size: {config.model.head_size}}}. Nothing was launched."
        )
    return shape
