"""Rate grids: a known surface of loss over rate and width is recovered, and what it cannot say is said."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from analysis_helpers import write_table

import analysis.sweep as steps
from analysis.finding import Finding
from analysis.rates import ALLOWED, lines, noise, rate_grids, study_rates
from analysis.report import write_report
from analysis.report.document import compose
from analysis.report.rates import drifts, optima
from analysis.values import RunRow

OWN, CURVATURE = 0.006, 0.012
"""The rate in the middle of the grid, and what an octave off costs in log loss."""

WIDTHS = (16, 32, 64, 128)


def row(width: int, octave: float, seed: int = 0, loss: float | None = None, **changes) -> RunRow:
    values = {
        "run_id": f"w{width}-{octave:+.1f}-{seed}",
        "group": "",
        "role": "fit",
        "status": "finished",
        "params": 12.0 * 2 * width**2,
        "tokens": 1e6,
        "flops": 144.0 * width**2 * 1e6,
        "loss": loss,
        "loss_se": 0.01,
        "lr": OWN * 2.0**octave,
        "wall_seconds": None,
        "batch_tokens": 384.0,
        "d_model": float(width),
        "param": "mup",
    }
    return RunRow(**{**values, **changes})


def grid(
    drift=0.0, noise=0.0, seeds=1, octaves=(-2, -1, 0, 1, 2), centre=0.2, widths=WIDTHS, seed=0, **changes
):
    """log L = log L*(width) + CURVATURE · (octaves from the optimum)², the optimum `centre` octaves above OWN
    at width 64, moving by `drift` octaves for each doubling of the width."""
    rng = np.random.default_rng(seed)
    rows = []
    for width in widths:
        best = centre + drift * math.log2(width / 64)
        for octave in octaves:
            for s in range(seeds):
                shift = CURVATURE * (octave - best) ** 2 + noise * rng.standard_normal()
                rows.append(row(width, octave, s, (1.2 + 4 / width) * math.exp(shift), **changes))
    return rows


@pytest.mark.parametrize("drift", [0.0, -0.3, 0.15])
@pytest.mark.parametrize("octaves", [(-2, -1, 0, 1, 2), tuple(np.arange(-2, 2.5, 0.5))])
def test_a_known_optimum_and_drift_are_recovered_exactly_without_noise(drift, octaves):
    study = study_rates(grid(drift, octaves=octaves))
    assert [curve.width for curve in study.curves] == list(WIDTHS)
    for curve in study.curves:
        best = math.log2(OWN) + 0.2 + drift * math.log2(curve.width / 64)
        assert curve.bracketed and curve.reason == ""
        assert curve.optimum.value == pytest.approx(best, abs=1e-9)
        assert curve.penalty_pct == pytest.approx(100 * math.expm1(CURVATURE))
        assert curve.loss_at(2.0**best) == pytest.approx(1.2 + 4 / curve.width)
        assert curve.loss_at(curve.rates) == pytest.approx(curve.loss)
    (found,) = study.drifts
    assert found.widths == (16, 128) and found.curves == 4
    assert found.per_octave.value == pytest.approx(drift, abs=1e-9)
    assert found.over_range.value == found.over_8x.value == pytest.approx(3 * drift, abs=1e-9)
    assert found.transfers is (abs(3 * drift) <= ALLOWED)
    assert found.cost_pct == pytest.approx(100 * math.expm1(CURVATURE * (3 * drift) ** 2), abs=1e-9)
    assert study.noise_pct == pytest.approx(0.0, abs=1e-9)


def test_the_unit_of_the_rate_does_not_matter():
    rows = grid(0.1, noise=0.002, seeds=2)
    shifted = [dataclasses.replace(r, lr=1000 * r.lr) for r in rows]
    one, other = study_rates(rows), study_rates(shifted)
    assert one.drifts[0].says == other.drifts[0].says
    for a, b in zip(one.curves, other.curves, strict=True):
        assert b.optimum.value - a.optimum.value == pytest.approx(math.log2(1000))
        assert (b.optimum.se, b.penalty_pct) == pytest.approx((a.optimum.se, a.penalty_pct))


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Over 120 grids of four widths with seeds: of 90% intervals 85 to 95% hold."""
    drifts, optima = 0, []
    for seed in range(120):
        study = study_rates(grid(0.1, noise=0.003, seeds=3, seed=seed))
        estimate = study.drifts[0].over_8x
        drifts += estimate.lo <= 0.3 <= estimate.hi
        optima += [
            curve.optimum.lo <= math.log2(OWN) + 0.2 + 0.1 * math.log2(curve.width / 64) <= curve.optimum.hi
            for curve in study.curves
        ]
    assert 0.83 <= drifts / 120 <= 0.97
    assert 0.85 <= np.mean(optima) <= 0.95


def test_noise_is_read_from_seeds_or_from_what_cubics_leave_or_not_at_all():
    sd, _, told = noise(rate_grids(grid(noise=0.004, seeds=8)))
    assert sd == pytest.approx(0.004, rel=0.15) and told.startswith("seeds of one rate, 140 degrees")
    sd, _, told = noise(rate_grids(grid(noise=0.004, widths=range(8, 400, 8))))
    assert sd == pytest.approx(0.004, rel=0.25) and "cubic" in told
    study = study_rates(grid(noise=0.004, octaves=(-1, 0, 1)))
    assert study.noise_pct is None and math.isnan(study.curves[0].optimum.se)
    assert study.drifts[0].transfers is None and "add seeds" in study.drifts[0].says
    assert any("optimum 0.0" in line and "±" not in line for line in lines(study))


def test_a_best_rate_at_the_edge_is_not_bracketed_and_has_no_optimum():
    rows = [r for r in grid(0.0, noise=0.001, seeds=2) if not (r.d_model == 128 and r.lr > 1.1 * OWN)]
    study = study_rates(rows)
    widest = study.curves[-1]
    assert not widest.bracketed and widest.optimum is None and widest.penalty_pct is None
    assert widest.reason == "the best rate is the highest tried"
    (found,) = study.drifts
    assert found.transfers is None and found.curves == 3
    assert (
        "cannot tell: bracketed optima span 4x of width, 8x is wanted; 1 of 4 widths have none" in found.says
    )
    assert found.asked and not study_rates(grid(widths=(16, 32))).drifts[0].asked


def test_a_best_rate_by_chance_on_a_curve_that_only_falls_is_not_bracketed():
    losses = dict(zip((-2, -1, 0, 1, 2), (1.5001, 1.5, 1.7, 1.8, 1.9), strict=True))
    rows = [row(64, octave, loss=loss) for octave, loss in losses.items()]
    (curve,) = study_rates(rows).curves
    assert curve.best == OWN / 2 and curve.optimum is None
    assert curve.reason == "the parabola has its minimum beyond the rates tried: the best is by chance"


def test_rates_that_diverged_are_told_and_bound_nothing():
    rows = [
        dataclasses.replace(r, status="diverged", loss=None, tokens=3e5)
        if r.d_model == 16 and r.lr > OWN * 1.1
        else r
        for r in grid()
    ]
    narrowest = study_rates(rows).curves[0]
    assert narrowest.failed == pytest.approx((2 * OWN, 4 * OWN))
    assert narrowest.reason == "the best rate is the highest that finished: 0.012, 0.024 came to no result"


def test_a_drift_too_uncertain_to_judge_is_not_judged():
    (found,) = study_rates(grid(0.1, noise=0.008, seeds=2)).drifts
    assert found.over_8x.hi > ALLOWED > found.over_8x.lo
    assert found.transfers is None and found.says.startswith("cannot tell")


def test_parametrisations_token_counts_and_batches_are_kept_apart():
    rows = [
        *grid(0.0),
        *grid(-0.4, param="sp"),
        *grid(0.0, tokens=2e6, centre=-0.5),
        *[
            dataclasses.replace(r, loss=9.0) for r in grid(batch_tokens=768.0, octaves=(-1, 1))
        ],  # two rates: no grid
    ]
    study = study_rates(rows)
    assert [(d.param, d.tokens) for d in study.drifts] == [("mup", 1e6), ("mup", 2e6), ("sp", 1e6)]
    assert [d.transfers for d in study.drifts] == [True, True, False]
    assert len(study.curves) == 12


def test_runs_of_two_batches_are_never_compared():
    """One width each at a batch of its own: their optima lie two octaves apart, and nothing drifts."""
    narrow, wide = grid(widths=(16,), batch_tokens=384.0), grid(widths=(128,), batch_tokens=768.0, centre=2.2)
    study = study_rates([*narrow, *wide])
    assert [curve.batch_tokens for curve in study.curves] == [384, 768] and study.drifts == ()
    both = study_rates([*grid(), *grid(batch_tokens=768.0, centre=1.2)])
    assert [(drift.batch_tokens, drift.curves) for drift in both.drifts] == [(384, 4), (768, 4)]
    assert all(abs(drift.over_8x.value) < 1e-9 for drift in both.drifts)
    assert "mup width 16, D=1M, batch 768: best rate" in lines(both)[4]


def test_what_is_no_rate_grid_is_none_and_holdouts_are_not_looked_at():
    assert study_rates([]) is None
    assert study_rates(grid(octaves=(0, 1))) is None
    assert study_rates([dataclasses.replace(r, lr=None) for r in grid()]) is None
    assert study_rates([dataclasses.replace(r, role="holdout") for r in grid()]) is None


def test_without_widths_there_are_optima_and_no_drift():
    study = study_rates([dataclasses.replace(r, d_model=None, param="") for r in grid()])
    assert len(study.curves) == 4 and study.drifts == ()
    assert study.curves[0].optimum.value == pytest.approx(math.log2(OWN) + 0.2)


# --- as a sweep's table ---------------------------------------------------------------------------


def as_table(rows: list[RunRow]) -> list[dict]:
    """Rows of runs.csv."""
    return [
        {
            "run_id": r.run_id,
            "group": f"{r.param} d_model={r.d_model:.0f}",
            "role": r.role,
            "status": r.status,
            "n_layer": 2,
            "d_model": int(r.d_model),
            "params_non_embedding": repr(r.params),
            "tokens": repr(r.tokens),
            "flops": repr(r.flops),
            "loss": repr(r.loss),
            "batch_tokens": 384,
            "lr": repr(r.lr),
            "param": r.param,
            "seed": i,
        }
        for i, r in enumerate(rows)
    ]


def test_a_rate_sweep_has_a_report_without_a_law(tmp_path):
    write_table(tmp_path / "runs.csv", as_table(grid(0.02, noise=0.001, seed=3) + grid(-0.4, param="sp")))
    analysis = steps.analyse(tmp_path)
    assert analysis.fits == () and "needs at least" in analysis.reasons[0]
    assert [drift.transfers for drift in analysis.rates.drifts] == [True, False]
    assert any(problem.startswith("Rates under sp: does not transfer") for problem in analysis.problems)
    off = [finding for finding in analysis.health if finding.kind == "rate off the optimum"]
    assert off and all(finding.excluded for finding in off)
    assert {finding.run_id for finding in off} <= {exclusion.run_id for exclusion in analysis.exclusions}
    assert {row.d_model for row in analysis.rows if not row.reason} == set(
        WIDTHS
    )  # each width keeps its best

    page = write_report(analysis, tmp_path / "report").read_text()
    text = (tmp_path / "report" / "report.md").read_text()
    assert (tmp_path / "report" / "figures" / "loss-against-rate.svg").exists()
    assert text.index("## Learning rate and width") < text.index("## Runs")
    assert "no law fitted" in page and "The optimal rate across widths, under mup: transfers" in text
    assert "Drift of the optimal rate with the width" in text and "does not transfer" in text
    assert "### Health of the runs" in text
    stored = json.loads((tmp_path / "report" / "fits.json").read_text())
    assert len(stored["rates"]["curves"]) == 8 and stored["fits"] == []


def test_widths_too_close_to_compare_make_neither_headline_nor_problem(tmp_path):
    write_table(tmp_path / "runs.csv", as_table(grid(1.0, widths=(32, 64))))
    analysis = steps.analyse(tmp_path)
    assert analysis.rates.drifts[0].says.startswith("cannot tell: bracketed optima span 2x")
    assert not any(problem.startswith("Rates") for problem in analysis.problems)
    first, *_ = compose(analysis).lede
    assert first.endswith("learning rates without widths 8x apart whose optima could be compared.")


def test_a_study_leads_before_the_rates(tmp_path):
    write_table(tmp_path / "runs.csv", as_table(grid(-0.4)))
    analysis = steps.analyse(tmp_path)
    assert compose(analysis).lede[0].startswith("The optimal rate across widths, under mup: does not")
    found = Finding("x", "X", "", "Something else was found.", "")
    assert compose(dataclasses.replace(analysis, findings=(found,))).lede[0] == found.found


def test_the_batch_is_shown_where_it_varies(tmp_path):
    rows = [*grid(noise=0.001), *grid(noise=0.001, batch_tokens=768.0, centre=1.0)]
    shown = {}
    for name, own in (("one", rows[: len(rows) // 2]), ("two", rows)):
        table = as_table(own)
        for line, r in zip(table, own, strict=True):
            line |= {"run_id": f"{r.run_id}-{r.batch_tokens:g}", "batch_tokens": r.batch_tokens}
        write_table(tmp_path / name / "runs.csv", table)
        analysis = steps.analyse(tmp_path / name)
        shown[name] = [[c.name for c in of(analysis).columns] for of in (drifts, optima)]
        assert write_report(analysis, tmp_path / name / "report").exists()
    assert all("batch" in names for names in shown["two"])
    assert not any("batch" in names for names in shown["one"])


def test_too_few_runs_without_a_rate_grid_are_still_refused(tmp_path):
    write_table(tmp_path / "runs.csv", as_table(grid(octaves=(0,))))
    with pytest.raises(ValueError, match="needs at least"):
        steps.analyse(tmp_path)
