"""Does it matter what N and C count? The same law fitted under each convention that the table offers.

Counting parameters with or without embeddings, and FLOPs with or without the head and attention, is
much of what set Kaplan et al.'s exponent apart from Hoffmann et al.'s (Porian et al. 2024, arXiv
2406.19146; Pearce & Song 2024, arXiv 2406.12907). A prediction of the loss ought not to depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.allocate import CostRule, by_surface, cost_rule
from analysis.ensemble import Member
from analysis.fitting import fit_law
from analysis.values import ByConvention, Convention, Runs, Skipped, Target

SAME_COUNT = 1e-3
"""Relative difference within which two columns count the same. Assumption: rounding in a table."""

PRODUCT = "6·N·D"

TOTAL = ("params_total", "n_params_total", "total_params", "n_params")
NON_EMBEDDING = ("params_non_embedding", "n_params_non_embedding", "non_embedding_params", "n_params_no_embed")
"""Columns that count so where a table has one of each."""


@dataclass(frozen=True, eq=False)
class ConventionFit:
    """One law fitted with N as counted by `params`; rules: FLOPs a token by way of counting C."""

    params: str
    runs: Runs
    member: Member
    exponents: tuple[tuple[str, float], ...]


@dataclass(frozen=True, eq=False)
class Conventions:
    """The fits, the analysis' own first, and what could not be fitted."""

    fits: tuple[ConventionFit, ...]
    skipped: tuple[Skipped, ...]

    def at(self, target: Target) -> ByConvention | None:
        """What each says of `target`, whose N is counted as the analysis counts; None where the table
        offers one convention alone."""
        own = self.fits[0]
        found = []
        for fit in self.fits:
            params, mapping = map_params(own.runs.params, fit.runs.params, target.params)
            if fit is own:
                params, mapping = target.params, "as given"
            loss = float(np.exp(_log_loss(fit.member, params, target.tokens)))
            found += [
                Convention(fit.params, flops, fit is own and i == 0, params, mapping, loss, a)
                for i, (flops, a) in enumerate(fit.exponents)
            ]
        if len(found) < 2:
            return None
        return ByConvention(own.member.law.name, target, tuple(found), self.skipped)


def fit_conventions(runs: Runs, member: Member) -> Conventions:
    """Fit `member`'s law to `runs` under every way of counting N that they offer, with the exponent a
    under every way of counting C; `member` itself is the analysis' own."""
    own = next((name for name, column in runs.params_columns.items() if _same(column, runs.params)), "params")
    fits, skipped = [ConventionFit(own, runs, member, _exponents(runs, member))], []
    for name, column in runs.params_columns.items():
        if any(_same(column, fit.runs.params) for fit in fits):
            continue
        try:
            other = _counted_by(runs, name, column)
            fit, theta, problem = fit_law(member.law, other)
        except ValueError as error:
            skipped.append(Skipped(f"N counted by {name}", str(error)))
            continue
        alone = Member(member.law, fit, problem, theta, np.empty((0, len(theta))))
        fits.append(ConventionFit(name, other, alone, _exponents(other, alone)))
    return Conventions(tuple(fits), tuple(skipped))


def by_count(runs: Runs, kind: str) -> dict[str, Runs]:
    """The runs with N counted without and with embeddings, by name; as they are, counted by `kind`, where
    the table does not offer both."""
    found = {}
    for name, columns in (("non-embedding", NON_EMBEDDING), ("total", TOTAL)):
        column = next((runs.params_columns[c] for c in columns if c in runs.params_columns), None)
        if column is not None and np.isfinite(column).all():
            found[name] = replace(runs, params=column)
    if len(found) == 2 and not _same(found["total"].params, found["non-embedding"].params):
        return found
    return {kind: runs}


def map_params(own: np.ndarray, other: np.ndarray, params: float) -> tuple[float, str]:
    """N in another convention, and how it was found.

    Between the sizes run (`own` and `other` [run], the two counts of each), log N_other is interpolated
    linearly against log N. Beyond them the share by which the larger exceeds the smaller goes on as a power
    of N, as for embeddings, which grow more slowly than N (Pearce & Song 2024: N_total = N + w·N^(1/3)).
    """
    sizes, first = np.unique(own, return_index=True)
    x, ratio = np.log(sizes), np.log(other[first] / sizes)
    at = float(np.log(params))
    if x[0] <= at <= x[-1] or len(x) == 1:
        return float(params * np.exp(np.interp(at, x, ratio))), "interpolated over the runs"
    share = np.expm1(np.abs(ratio))
    end, slope = 0 if at < x[0] else -1, 0.0
    if (ratio > 0).all() or (ratio < 0).all():
        near = slice(None, len(x) // 2 + 1) if end == 0 else slice(len(x) // 2 - 1, None)
        slope = min(float(np.polyfit(x[near], np.log(share[near]), 1)[0]), 0.0)
    beyond = np.sign(ratio[end]) * np.log1p(share[end] * np.exp(slope * (at - x[end])))
    return float(params * np.exp(beyond)), "extrapolated beyond the runs"


def _counted_by(runs: Runs, name: str, column: np.ndarray) -> Runs:
    """Raises ValueError: a run without that count."""
    lacking = np.flatnonzero(~np.isfinite(column))
    if len(lacking):
        raise ValueError(f"{len(lacking)} of {len(runs)} runs have none ({runs.run_id[lacking[0]]} first)")
    return replace(runs, params=column)


def _exponents(runs: Runs, member: Member) -> tuple[tuple[str, float], ...]:
    """(way of counting C, a) for each way that differs, the runs' own first."""
    product = 6 * runs.params * runs.tokens
    offered = {name: column for name, column in runs.flops_columns.items() if np.isfinite(column).all()}
    own = next((name for name, column in offered.items() if _same(column, runs.flops)), "flops")
    ways = {PRODUCT if own == "flops" and _same(product, runs.flops) else own: runs.flops, **offered}
    ways[PRODUCT] = product
    kept: dict[str, np.ndarray] = {}
    for name, flops in ways.items():
        if not any(_same(flops, other) for other in kept.values()):
            kept[name] = flops
    return tuple((name, _exponent(replace(runs, flops=flops), member)) for name, flops in kept.items())


def _exponent(runs: Runs, member: Member) -> float:
    alone = replace(member, draws=np.tile(member.theta, (2, 1)))  # the estimate alone, no resamples
    rule: CostRule = cost_rule(runs)
    return by_surface(alone, rule, runs).a.value


def _log_loss(member: Member, params: float, tokens: float) -> float:
    X = np.log([[params, tokens]]) - member.problem.centre
    return float(member.law.evaluate(member.theta[None], X)[0][0, 0])


def _same(one: np.ndarray, other: np.ndarray | Sequence[float]) -> bool:
    return bool(np.allclose(one, other, rtol=SAME_COUNT, atol=0))
