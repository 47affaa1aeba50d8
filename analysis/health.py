"""Is each finished run a well-trained one? What is wrong with it, against which threshold, and from where.

A law is fitted to what sizes and data can reach. A run that got too few steps, whose rate never came down,
that was thrown back by a spike or ran at a bad rate is no such point. What a table does not tell is not
judged: each check is silent where its columns or files are missing.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from analysis.rates import study_rates
from analysis.table import SWEEP_RULES, Table
from analysis.units import count
from analysis.values import Exclusion, HealthFinding, RateStudy, RunRow

KINDS = (
    "too few steps",
    "diverged",
    "undercooled",
    "rate off the optimum",
    "spiking",
    "batch above critical",
)
"""From the worst to the mildest."""

FEWEST_DECAY = 0.1
"""Share of the tokens over which the rate must come down. Hägele et al. 2024 (arXiv 2405.18392), section 4:
cooldowns of 10 to 20% of the steps reach what a cosine schedule does."""

HIGHEST_END = 0.2
"""Rate at the end over the peak, at most. Hoffmann et al. 2022 (arXiv 2203.15556), appendix B: down to
a tenth; twice that is let pass (assumption)."""

OFF_OPTIMUM = 0.75
"""Octaves from the optimal rate. Assumption: of rates an octave apart one at least lies within it, and it
costs about half of what a whole octave does, as the loss is a parabola."""

LEAST_COST = 0.005
"""Of the loss: a run that a rate off the optimum costs less than this is as good as any. Assumption."""

SPIKE, SPIKE_WINDOW = 7.0, 20
"""Standard deviations above the mean of the lines of metrics before it. OLMo 2 (arXiv 2501.00656)
counts spikes so, over the last thousand steps; 20 lines are an assumption."""

LEAST_SPIKE = 0.02
"""log of a loss over that mean, at least: smaller ones are noise of a batch, however steady the lines before.
Assumption."""

RISEN_WITH_IT = 3.0
"""Standard deviations of the loss at or after a spike of the gradient's norm. Assumption: of 21 healthy runs
of small decoders 8 had spikes of the norm, up to 27 standard deviations high, that the loss did not show."""

NEIGHBOURS = 0.6745 * math.sqrt(2)
"""Median |difference| of two normal values in units of their standard deviation."""

THROWN_BACK, THROWN_BACK_NOISE = 0.02, 4.0
"""log of the training loss at the end over the lowest before it, both over a tenth of the run;
and in standard deviations of such a difference, by how far lines differ from their neighbours. Assumption;
in 21 healthy runs of small decoders the loss ended up to 0.019 and 1.4 of these above its lowest."""

CRITICAL_AT_1, CRITICAL_POWER = 2.1e8, 4.8
"""B_crit = 2.1e8 tokens · L^-4.8, L in nats a token of WebText2: Kaplan et al. 2020 (arXiv
2001.08361), figure 10."""

WEBTEXT_BYTES = 96e9 / 2.29e10
"""Bytes in a token of WebText2: the same, section 2.3."""


@dataclass(frozen=True)
class Course:
    """One run's training lines in metrics.jsonl, by step; float64[line]. grad_norm is NaN where it was
    not logged; where tokens were not, each update stands for one."""

    step: np.ndarray
    loss: np.ndarray
    rate: np.ndarray
    grad_norm: np.ndarray
    tokens: np.ndarray

    def whole_lines(self) -> Course:
        """Without lines that are means of far fewer updates than the others: the last one, often."""
        if len(self.step) < 2:
            return self
        updates = np.diff(self.step, prepend=2 * self.step[0] - self.step[1])
        whole = updates >= 0.5 * np.median(updates)
        columns = (self.step, self.loss, self.rate, self.grad_norm, self.tokens)
        return Course(*(column[whole] for column in columns))


def examine(
    table: Table, folder: Path | None = None, only: Collection[str] | None = None
) -> tuple[HealthFinding, ...]:
    """What is wrong with the finished rows to fit, the worst kinds first.

    Args:
        folder: of a sweep, whose runs/<run_id>/metrics.jsonl are read where they are.
        only: look at these rows instead, holdouts too: for those whose prediction is written.
    """
    rows = [
        row
        for row in table.rows
        if row.status == "finished" and (row.run_id in only if only else row.role == "fit")
    ]
    found = [*_off_optimum(rows, study_rates(table.rows))]
    for row in rows:
        found += [*_few_steps(row), *_above_critical(row)]
        course = read_course(folder, row.run_id) if folder else None
        if course is not None:
            whole = course.whole_lines()
            found += [*_undercooled(course, row), *_thrown_back(whole, row), *_spikes(whole, row)]
    if not only:
        found += _read_early(table, {finding.run_id for finding in found if finding.kind == "undercooled"})
    found = [replace(f, excluded=False) for f in found] if only else _minority(found, len(rows))
    return tuple(sorted(found, key=lambda finding: KINDS.index(finding.kind)))


def with_health(table: Table, folder: Path | None = None) -> Table:
    """`table` with its findings, and without the rows that they exclude."""
    findings = examine(table, folder)
    used = set(table.runs.run_id)
    worst: dict[str, HealthFinding] = {}
    for finding in findings:
        if finding.excluded and finding.run_id in used:
            worst.setdefault(finding.run_id, finding)
    kept = np.array([run_id not in worst for run_id in table.runs.run_id], dtype=bool)
    rows = tuple(
        replace(row, reason=worst[row.run_id].says) if row.run_id in worst and row.role == "fit" else row
        for row in table.rows
    )
    left_out = tuple(Exclusion(run_id, finding.says) for run_id, finding in worst.items())
    return replace(
        table,
        runs=table.runs.take(kept),
        rows=rows,
        exclusions=(*table.exclusions, *left_out),
        health=findings,
    )


def of_predicted(table: Table, folder: Path | None, predicted: Collection[str]) -> Table:
    """`table` with the findings on the holdouts `predicted` added: their losses may be read by now."""
    if not predicted:
        return table
    return replace(table, health=(*table.health, *examine(table, folder, predicted)))


def concerns(findings: Sequence[HealthFinding], runs: int) -> tuple[str, ...]:
    """A sentence on what matters to a fit of `runs` runs that keeps the sick ones in; those left out are told
    with the other exclusions. A spike or a batch above critical matters where half of the runs have it."""
    counts = Counter(finding.kind for finding in findings if not finding.excluded)
    telling = [kind for kind in KINDS if counts[kind] and (kind == "undercooled" or 2 * counts[kind] >= runs)]
    told = ", ".join(f"{counts[kind]} {kind}" for kind in telling)
    return (f"Of {runs} fitted runs {told}: see the health of the runs.",) if told else ()


# --- what the table tells -------------------------------------------------------------------------


def _few_steps(row: RunRow) -> Iterator[HealthFinding]:
    if row.batch_tokens and row.tokens:
        steps = row.tokens / row.batch_tokens
        if steps < SWEEP_RULES.min_steps:
            says = f"{steps:.0f} steps, under {SWEEP_RULES.min_steps:g}"
            source = "measured on small decoders: seeds of such runs differ by up to 7%"
            yield _finding(row, "too few steps", says, steps, SWEEP_RULES.min_steps, source, bool(row.reason))


def _above_critical(row: RunRow) -> Iterator[HealthFinding]:
    if not row.batch_tokens or not row.loss:
        return
    critical = critical_tokens(row)
    if row.batch_tokens > critical:
        says = f"a batch of {count(row.batch_tokens)} tokens, critical at this loss about {count(critical)}"
        source = "Kaplan et al. 2020 (arXiv 2001.08361), figure 10"
        source += "" if row.bits_per_byte else "; tokens taken as WebText2's"
        yield _finding(row, "batch above critical", says, row.batch_tokens, critical, source, False)


def critical_tokens(row: RunRow) -> float:
    """B_crit at a run's loss, in its own tokens: converted to those of WebText2 by their bytes, where the
    table has bits a byte; else taken as they are."""
    bits = row.bits_per_byte
    ratio = row.loss / (bits * math.log(2)) / WEBTEXT_BYTES if bits else 1.0  # a token's bytes over WebText2's
    return critical_batch(row.loss / ratio) / ratio


def critical_batch(loss: float) -> float:
    """B_crit in tokens of WebText2 at a loss in nats of them: beyond it, larger batches save few steps."""
    return CRITICAL_AT_1 * loss**-CRITICAL_POWER


def _off_optimum(rows: Sequence[RunRow], study: RateStudy | None) -> Iterator[HealthFinding]:
    """A run far from its shape's optimal rate, and worse for it. Left out of fits only where the optimum is
    bracketed: elsewhere the best rate tried may just be the luckiest."""
    place = {row.run_id: row for row in rows}
    for curve in study.curves if study else ():
        optimum = curve.optimum.value if curve.optimum else math.log2(curve.best)
        for run_id in curve.run_ids:
            row = place.get(run_id)
            if row is None or row.lr == curve.best:
                continue
            off = math.log2(row.lr) - optimum
            worse = math.log(row.loss / curve.loss.min())
            if abs(off) > OFF_OPTIMUM and worse > max(LEAST_COST, 3 * (study.noise_pct or 0.0) / 100):
                best = (
                    f"the optimum of its shape, {2**optimum:.3g}"
                    if curve.optimum
                    else f"{curve.best:.3g}, its shape's best"
                )
                side = "above" if off > 0 else "below"
                says = f"its rate {row.lr:.3g} is {abs(off):.2g} octaves {side} {best}"
                yield _finding(row, "rate off the optimum", says, abs(off), OFF_OPTIMUM, "assumption", bool(curve.optimum))


def _read_early(table: Table, known: Collection[str]) -> Iterator[HealthFinding]:
    """Losses that the table itself says were read before the schedule had ended."""
    decayed = table.runs.decayed
    if decayed is None:
        return
    place = {row.run_id: row for row in table.rows}
    for run_id, value in zip(table.runs.run_id, decayed, strict=True):
        if value == 0 and run_id not in known:
            says = "its loss was read before its schedule had ended"
            yield _finding(place[run_id], "undercooled", says, 0.0, 1.0, "the table", False)


def _minority(findings: Sequence[HealthFinding], runs: int) -> list[HealthFinding]:
    """Undercooled runs are left out where most runs are not: their losses are no others' equals. Where most
    are, the law is one of such runs, and the verdict says so."""
    undercooled = sum(finding.kind == "undercooled" for finding in findings)
    excluded = 2 * undercooled < runs
    return [replace(f, excluded=excluded) if f.kind == "undercooled" else f for f in findings]


# --- what the course of training tells ------------------------------------------------------------


def read_course(folder: Path, run_id: str) -> Course | None:
    """The training lines of one run of a sweep; None where there are none, or no run of this name. Of lines
    for one step the last one counts: a resumed worker did them again.

    Held-out losses in the file are not looked at.
    """
    path = Path(folder) / "runs" / run_id / "metrics.jsonl"
    if run_id != Path(run_id).name or not path.is_file():
        return None
    lines: dict[int, Mapping[str, float]] = {}
    for text in path.read_text(encoding="utf-8").splitlines():
        line = _line(text)
        if line is not None:
            lines[line["step"]] = line
    if not lines:
        return None
    columns = [
        np.array([float(lines[step].get(name, math.nan)) for step in sorted(lines)])
        for name in ("step", "loss", "lr", "grad_norm", "tokens")
    ]
    tokens = columns.pop()
    return Course(*columns, tokens if np.isfinite(tokens).all() else columns[0])


def _line(text: str) -> Mapping[str, float] | None:
    """A training line; None for an evaluation, and where a crash cut it off."""
    try:
        line = json.loads(text)
        values = [float(line[name]) for name in ("step", "loss", "lr")]
    except (ValueError, KeyError, TypeError):
        return None
    return line if all(math.isfinite(value) and value > 0 for value in values) else None


def _undercooled(course: Course, row: RunRow) -> Iterator[HealthFinding]:
    """The share, of the tokens, is the most that it can be: from the last line at the peak to the end, or of a
    branch, whose trunk was at the peak, from a line's distance before its first."""
    peak = max(course.rate.max(), row.lr or 0.0)
    at_peak = np.flatnonzero(course.rate >= peak * (1 - 1e-9))
    lines = np.diff(course.tokens, prepend=0.0)
    update = float(np.median(lines / np.diff(course.step, prepend=0.0)))
    # a line tells the rate of the update before it
    start = course.tokens[at_peak[-1]] - update if len(at_peak) else max(0.0, course.tokens[0] - np.median(lines))
    share, end = 1 - start / course.tokens[-1], course.rate[-1] / peak
    if end > HIGHEST_END:
        says = f"its rate ended at {100 * end:.0f}% of the peak, over {100 * HIGHEST_END:.0f}%"
        source = "Hoffmann et al. 2022 (arXiv 2203.15556), appendix B, doubled"
        yield _finding(row, "undercooled", says, end, HIGHEST_END, source, True)
    elif share + 0.5 * update / course.tokens[-1] < FEWEST_DECAY * (1 - 1e-9):  # decays are whole updates
        says = f"its rate came down over {100 * share:.1f}% of its tokens, under {100 * FEWEST_DECAY:.0f}%"
        source = "Hägele et al. 2024 (arXiv 2405.18392), section 4"
        yield _finding(row, "undercooled", says, share, FEWEST_DECAY, source, True)


FEWEST_LINES = 3
"""Lines of metrics that a mean is taken over at least: of single ones the lowest is a matter of chance (a branch had
16 lines, one of which lay 16% below its end in a healthy run at cpu scale). Assumption."""


def _thrown_back(course: Course, row: RunRow) -> Iterator[HealthFinding]:
    """Ended higher than it had been: it diverged without exploding, or a spike came too late to recover."""
    width = max(FEWEST_LINES, len(course.loss) // 10)
    if len(course.loss) < 3 * width:
        return
    means = np.convolve(np.log(course.loss), np.full(width, 1 / width), mode="valid")
    risen = float(means[-1] - means.min())
    line = float(np.median(np.abs(np.diff(np.log(course.loss))))) / NEIGHBOURS
    threshold = max(THROWN_BACK, THROWN_BACK_NOISE * line * math.sqrt(2 / width))
    if risen > threshold:
        says = f"its training loss ended {100 * math.expm1(risen):.1f}% above its lowest"
        yield _finding(row, "diverged", says, risen, threshold, "assumption", True)


def _spikes(course: Course, row: RunRow) -> Iterator[HealthFinding]:
    """Of the loss; or of the gradient's norm where the loss rises with it: alone it is an odd batch, which
    clipping takes care of."""
    heights = {"training loss": _heights(course.loss)}
    if np.isfinite(course.grad_norm).all() and (course.grad_norm > 0).all():
        risen = np.maximum(heights["training loss"], np.roll(heights["training loss"], -1)) > RISEN_WITH_IT
        heights["gradient norm"] = np.where(risen, _heights(course.grad_norm), 0.0)
    for what, height in heights.items():
        line = int(np.argmax(height))
        if height[line] > SPIKE:
            says = (
                f"its {what} spiked by {height[line]:.0f} standard deviations at step {course.step[line]:.0f}"
            )
            source = "OLMo 2 (arXiv 2501.00656)"
            yield _finding(row, "spiking", says, height[line], SPIKE, source, False)


def _heights(values: np.ndarray) -> np.ndarray:
    """How many standard deviations each line lies above the SPIKE_WINDOW lines before it, in log; 0 for those
    with fewer before them, and where it rises by less than LEAST_SPIKE. float64[line]."""
    logs, heights = np.log(values), np.zeros(len(values))
    for i in range(SPIKE_WINDOW, len(logs)):
        before = logs[i - SPIKE_WINDOW : i]
        rise = logs[i] - before.mean()
        if rise > LEAST_SPIKE:
            heights[i] = rise / max(before.std(ddof=1), 1e-12)
    return heights


def _finding(
    row: RunRow, kind: str, says: str, value: float, threshold: float, source: str, excluded: bool
) -> HealthFinding:
    return HealthFinding(row.run_id, kind, says, float(value), float(threshold), source, excluded)
