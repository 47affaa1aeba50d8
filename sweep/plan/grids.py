"""Grid to cells: which sizes on how many tokens. Pure functions of the configuration.

A cell is a shape, a number of tokens, a seed and the configuration its run is made with; plan.py
turns it into a RunSpec.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.config import DecoderShape
from models.count import count_parameters, training_flops_per_token
from models.sizes import FamilyRule, nearest_shape
from sweep.plan.rules import UNUSED
from sweep.plan.schema import ConfigError, IsoflopGrid, LadderGrid, LrGrid, ProductGrid, SweepConfig, with_values


@dataclass(frozen=True)
class Cell:
    """One point of a grid. `tokens` is what was asked for; a run has a whole number of batches."""

    config: SweepConfig
    shape: DecoderShape
    tokens: float
    seed: int
    group: str
    role: str = "fit"

    @property
    def params(self) -> int:
        """N, non-embedding."""
        return count_parameters(self.shape).non_embedding

    @property
    def label(self) -> str:
        """Where an error is, in the user's terms."""
        return f"grid {self.config.grid.kind}, {self.group}, n_layer={self.shape.n_layer} d_model={self.shape.d_model}"


def family(config: SweepConfig, vocab_size: int) -> FamilyRule:
    """The family of shapes that the model group describes. Raises ConfigError where it is none."""
    model = config.model
    try:
        return FamilyRule(
            width_step=model.width_step,
            ff_ratio=model.ff_ratio,
            vocab_size=vocab_size,
            seq_len=model.seq_len,
            activation=model.activation,
            qk_norm=model.qk_norm,
            tied=model.tied,
            n_layer=model.n_layer,
            aspect_ratio=model.aspect_ratio,
            n_head=model.n_head,
            head_size=model.head_size,
        )
    except ValueError as error:
        raise ConfigError(f"model: {error}") from error


def shape_for(config: SweepConfig, vocab_size: int, params: float, key: str) -> DecoderShape:
    """The family's member nearest to `params`; ConfigError naming `key` where there is none."""
    try:
        return nearest_shape(family(config, vocab_size), params)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error


def named_shape(config: SweepConfig, vocab_size: int, numbers: Sequence[int], key: str) -> DecoderShape:
    """The shape of these (n_layer, d_model, n_head, d_ff); the rest is the model group's. Raises ConfigError
    naming `key`."""
    model = config.model
    try:
        n_layer, d_model, n_head, d_ff = numbers
        return DecoderShape(
            n_layer, d_model, n_head, d_ff, vocab_size, model.seq_len, model.activation, model.qk_norm, model.tied
        )
    except ValueError as error:
        raise ConfigError(f"{key}: {list(numbers)}: n_layer, d_model, n_head and d_ff are wanted: {error}") from error


def cells(config: SweepConfig, vocab_size: int) -> list[Cell]:
    """Every cell to fit on, in the grid's order. The target is `target_cell`'s."""
    grid = config.grid
    if isinstance(grid, IsoflopGrid):
        base = [cell for budget in grid.budgets for cell in _isoflop_cells(config, vocab_size, budget)]
        return [*base, *_arm_cells(config, vocab_size)]
    if isinstance(grid, LadderGrid):
        return list(_ladder_cells(config, vocab_size))
    if isinstance(grid, LrGrid):
        from sweep.plan.lr_grid import lr_cells  # it imports Cell from here

        return list(lr_cells(config, vocab_size))
    return list(_product_cells(config, vocab_size))


def budget_group(flops: float) -> str:
    return f"C={flops:.4g}"


def expected_optimum(grid: IsoflopGrid, flops: float) -> float:
    """The non-embedding N around which a budget's sizes are laid, before anything was measured."""
    return grid.optimum_params * (flops / grid.optimum_at_flops) ** grid.optimum_exponent


def isoflop_cell(config: SweepConfig, shape: DecoderShape, budget: float, seed: int, role: str = "fit") -> Cell:
    """`shape` trained for exactly `budget` FLOPs."""
    tokens = budget / training_flops_per_token(shape)
    return Cell(config, shape, tokens, seed, budget_group(budget), role)


def _isoflop_cells(config: SweepConfig, vocab_size: int, budget: float) -> Iterator[Cell]:
    grid = config.grid
    if grid.sizes is not None:
        wanted, key = grid.sizes, "grid.sizes"
    else:
        centre, middle = math.log(expected_optimum(grid, budget)), (grid.sizes_per_budget - 1) / 2
        first = round(_rung(grid, centre) - middle)
        wanted = [_size(grid, first + i) for i in range(grid.sizes_per_budget)]
        key = "grid.sizes_per_budget"
    shapes = [shape_for(config, vocab_size, params, key) for params in wanted]
    for shape in dict.fromkeys(shapes):  # two sizes may round to one shape
        for seed in seeds(config):
            yield isoflop_cell(config, shape, budget, seed)


ARM = "arm"
"""Role of runs that are made otherwise than those to fit; only a study of what that does looks at them."""


def _arm_cells(config: SweepConfig, vocab_size: int) -> Iterator[Cell]:
    """The budgets' cells once more for each arm, made with its values."""
    grid = config.grid
    for name, values in grid.arms.items():
        varied = with_values(config, _dotted(values))
        for budget in grid.budgets if grid.arm_budgets is None else grid.arm_budgets:
            for cell in _isoflop_cells(varied, vocab_size, budget):
                yield replace(cell, group=f"{name}: {cell.group}", role=ARM)


def _rung(grid: IsoflopGrid, log_params: float) -> float:
    """Where a size stands among the sizes of all budgets, which are `size_ratio` apart so that budgets
    share them, and with them their trunks: `optimum_params` is number 0."""
    return (log_params - math.log(grid.optimum_params)) / math.log(grid.size_ratio)


def _size(grid: IsoflopGrid, rung: int) -> float:
    return grid.optimum_params * grid.size_ratio**rung


def _ladder_cells(config: SweepConfig, vocab_size: int) -> Iterator[Cell]:
    grid = config.grid
    if (grid.sizes is None) == (grid.shapes is None):
        raise ConfigError("grid: give sizes or shapes, not both and not neither")
    shapes = (
        [shape_for(config, vocab_size, params, "grid.sizes") for params in grid.sizes]
        if grid.shapes is None
        else [named_shape(config, vocab_size, shape, "grid.shapes") for shape in grid.shapes]
    )
    for shape in shapes:
        for seed in seeds(config):
            yield Cell(config, shape, config.grid.tokens, seed, "ladder")


REPLICATE_STRIDE = 1000
"""Between the seeds of one cell's replicates, so that sweeps with neighbouring seeds share no run."""


def seeds(config: SweepConfig) -> list[int]:
    return [config.seed + REPLICATE_STRIDE * i for i in range(config.grid.seeds)]


AXES = ("params", "tokens", "flops")


def _dotted(over: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`over` by dotted key. On the command line grid.over.optim.lr=[...] makes nested mappings."""
    flat: dict[str, Any] = {}
    for key, value in over.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _points(grid: ProductGrid) -> Iterator[dict[str, Any]]:
    """What is set in each cell, by dotted key: the combinations under `over`, each followed by itself with one
    key of `each` at another value."""
    over, each = _dotted(grid.over), _dotted(grid.each)
    for name, lists in (("over", over), ("each", each)):
        for key, values in lists.items():
            if not isinstance(values, (list, tuple)) or not values:
                raise ConfigError(f"grid.{name}: {key}: a list with a value or more is wanted, found {values!r}")
    for values in itertools.product(*over.values()):
        base = dict(zip(over, values))
        yield base
        yield from (base | {key: value} for key, values in each.items() for value in values)


def _product_cells(config: SweepConfig, vocab_size: int) -> Iterator[Cell]:
    made: list[Cell] = []
    for point in _points(config.grid):
        cell = _product_cell(config, vocab_size, dict(point))
        if cell.tokens * training_flops_per_token(cell.shape) > (config.grid.max_flops or math.inf):
            continue
        if all(replace(other, group=cell.group) != cell for other in made):  # a value of `each` may be the base's
            made.append(cell)
            yield cell


def _product_cell(config: SweepConfig, vocab_size: int, point: dict[str, Any]) -> Cell:
    axes = {axis: point.pop(axis, getattr(config.grid, axis)) for axis in AXES}
    varied = with_values(config, point)
    for key in UNUSED[varied.optim.rule] & point.keys():
        raise ConfigError(f"grid.over: {key} means nothing to optim.rule={varied.optim.rule}")
    for axis, value in axes.items():
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            raise ConfigError(f"grid.over: {axis}: {value!r} is not a positive number")
    if (axes["tokens"] is None) == (axes["flops"] is None):
        raise ConfigError("grid: give tokens or flops (grid.tokens=..., or a list under grid.over), not both")
    if axes["params"] is None:
        raise ConfigError("grid.params: give a size, or a list of them under grid.over")
    shape = shape_for(varied, vocab_size, float(axes["params"]), "grid.params")
    tokens = axes["tokens"] or float(axes["flops"]) / training_flops_per_token(shape)
    group = " ".join(f"{key}={value}" for key, value in point.items()) or "product"
    return Cell(varied, shape, float(tokens), varied.seed, group)


def target_cell(config: SweepConfig, vocab_size: int, params: float | None = None) -> Cell | None:
    """The run to predict and then train: of grid.target.flops, with grid.target.params or `params`
    (the fitted optimum, or an expected one for a provisional plan). None where no target is asked for.
    """
    target = config.grid.target
    if target.flops is None:
        return None
    wanted = target.params or params
    if target.shape is not None:
        shape = named_shape(config, vocab_size, target.shape, "grid.target.shape")
    elif wanted is None:
        raise ConfigError("grid.target.params: this grid cannot choose the target's size; give it")
    else:
        shape = shape_for(config, vocab_size, wanted, "grid.target.params")
    return replace(isoflop_cell(config, shape, target.flops, config.seed, role="holdout"), group="target")


def provisional_target_params(config: SweepConfig) -> float | None:
    """The target's size as expected before the fit, for the plan's estimate."""
    grid = config.grid
    if grid.target.flops is None or grid.target.params is not None:
        return grid.target.params
    return expected_optimum(grid, grid.target.flops) if isinstance(grid, IsoflopGrid) else None


@dataclass(frozen=True)
class Extension:
    """What bracketing an optimum takes: further cells, or why there are none."""

    cells: tuple[Cell, ...]
    message: str


def extensions(config: SweepConfig, vocab_size: int, settled: Sequence[tuple[Cell, float | None]]) -> list[Extension]:
    """For each budget whose best size is the smallest or the largest tried, one size further out.

    `settled` holds every cell of the budgets whose runs have all ended, with their loss (None where a
    run has none); other budgets are not looked at. The mean over seeds counts. A budget is extended
    until it is bracketed, `grid.extensions` sizes were added, or the family ends.
    """
    grid = config.grid
    if isinstance(grid, LrGrid):
        from sweep.plan.lr_grid import lr_extensions

        return lr_extensions(config, vocab_size, settled)
    if not isinstance(grid, IsoflopGrid):
        return []
    found = []
    for budget in grid.budgets:
        by_shape: dict[DecoderShape, list[float]] = {}
        for cell, loss in settled:
            if cell.group == budget_group(budget) and loss is not None:
                by_shape.setdefault(cell.shape, []).append(loss)
        if len(by_shape) < 2:
            continue
        ranked = sorted(by_shape, key=lambda shape: count_parameters(shape).non_embedding)
        best = min(ranked, key=lambda shape: sum(by_shape[shape]) / len(by_shape[shape]))
        planned = len({cell.shape for cell in _isoflop_cells(config, vocab_size, budget)})
        if best is ranked[0]:
            side, step = "smallest", 1 / grid.size_ratio
        elif best is ranked[-1]:
            side, step = "largest", grid.size_ratio
        else:
            continue
        where = f"budget {budget:.3g}: its best size ({count_parameters(best).non_embedding:,}) is the {side} tried"
        if len(ranked) - planned >= grid.extensions:
            found.append(Extension((), f"{where}; {grid.extensions} sizes were added already, so it stays"))
            continue
        further = _next_shape(config, vocab_size, best, step)
        if further is None:
            found.append(Extension((), f"{where}; the family has none beyond it"))
            continue
        new = tuple(isoflop_cell(config, further, budget, seed) for seed in seeds(config))
        found.append(Extension(new, f"{where}; adding {new[0].params:,} parameters"))
    return found


def _next_shape(config: SweepConfig, vocab_size: int, edge: DecoderShape, step: float) -> DecoderShape | None:
    """The member about `step` times as large as `edge`, one that budgets share where the grid lays out the
    sizes, and never `edge` itself."""
    grid, wanted = config.grid, float(count_parameters(edge).non_embedding)
    rule = family(config, vocab_size)
    for _ in range(8):  # assumption: neighbouring members are less than step^8 apart
        wanted *= step
        if grid.sizes is None:
            wanted = _size(grid, round(_rung(grid, math.log(wanted))))
        try:
            shape = nearest_shape(rule, wanted)
        except ValueError:
            return None
        if shape != edge:
            return shape
    return None


def tokens_needed(planned: Sequence[Cell]) -> float:
    """D of the longest run: what the corpus must hold, up to data.max_epochs."""
    return max((cell.tokens for cell in planned), default=0.0)
