"""What the user reads in the terminal: the plan with its cost, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from models.count import count_parameters
from sweep.plan.cost import Cost
from sweep.plan.spec import PlannedRun
from sweep.units import memory, quantity

PLAIN_WIDTH = 132  # assumption: a log file or pipe has no width; the widest table fits in this
MOST_ROWS = 60  # assumption: more are not read in a terminal; runs.csv and plan.json have all


def console() -> Console:
    """A console on stdout that is as wide as the terminal, or wide enough when there is none."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def plan_table(runs: Sequence[PlannedRun], costs: Mapping[str, Cost], done: frozenset[str]) -> Table:
    """One row for each run: N (non-embedding), D, C, the share of C that its trunk doesn't train for it,
    batch, rate, steps, and what it costs here."""
    table = Table(title="plan", title_justify="left", caption_justify="left", box=None, header_style="bold")
    for name in ("group", "N non-emb.", "D tokens", "D/N", "C FLOPs", "own", "batch", "rate", "steps", "seconds", "memory", ""):
        table.add_column(name, justify="left" if name in ("group", "") else "right", no_wrap=True)
    for planned in runs[:MOST_ROWS]:
        spec, params = planned.spec, count_parameters(planned.spec.shape).non_embedding
        cost = costs.get(planned.run_id)
        state = "done" if planned.run_id in done else "" if planned.role in ("fit", planned.group) else planned.role
        table.add_row(
            planned.group,
            quantity(params),
            quantity(spec.tokens),
            f"{spec.tokens / params:.1f}",
            f"{spec.flops:.2e}",
            f"{planned.own_share:.0%}",
            quantity(spec.batch_tokens),
            f"{spec.optim.lr:.2e}",
            f"{spec.steps:,}",
            f"{cost.seconds:,.0f}" if cost else "",
            memory(cost.peak_bytes) if cost else "",
            state,
        )
    if len(runs) > MOST_ROWS:
        table.caption = f"and {len(runs) - MOST_ROWS:,} more"
    return table
