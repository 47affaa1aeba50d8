"""noise, gpt4, ladder and shape: each recovers a synthetic truth, and refuses where its assumption fails."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf

from analysis.__main__ import CONF, as_request, run
from analysis.compute_law import fit_compute
from analysis.discrepancy import krige
from analysis.fitting import fit_law
from analysis.laws import SEPARABLE
from analysis.replicates import Pooled
from analysis.store import read_predictions
from analysis.studies import Evidence, gpt4, ladder, noise, shape
from analysis.sweep import analyse, write_prediction
from analysis.table import as_runs, read_table
from analysis.values import Target, Verdict

RUN = {"status": "finished", "role": "fit", "batch_tokens": 512, "lr": 0.01, "param": "mup"}


def evidence(tmp_path, rows) -> Evidence:
    columns = dict.fromkeys(name for row in rows for name in row)
    with open(tmp_path / "runs.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return Evidence(read_table(tmp_path / "runs.csv"))


def number(finding, starts):
    return next(n for n in finding.numbers if n.what.startswith(starts))


# --- noise ----------------------------------------------------------------------------------------


def replicated(by_seed, by_order, *, sizes=(1e4, 1e5), tokens=(1e6, 1e7), k=4, power=0.0, seed=0):
    """Cells as +grid=noise lays them: a base, k runs of other seeds, k of other orders. Effects are additive and
    normal; the sd goes as N^power."""
    rng = np.random.default_rng(seed)
    rows = []
    for N in sizes:
        for D in tokens:
            scale = (N / sizes[0]) ** power
            initial, order = (
                rng.standard_normal(k + 1) * by_seed * scale,
                rng.standard_normal(k + 1) * by_order * scale,
            )
            pairs = [(0, 0), *((i, 0) for i in range(1, k + 1)), *((0, i) for i in range(1, k + 1))]
            for i, j in pairs:
                loss = (1 + N**-0.1 + D**-0.1) * math.exp(initial[i] + order[j])
                rows.append(
                    {
                        **RUN,
                        "params": N,
                        "tokens": D,
                        "loss": repr(loss),
                        "seed": i,
                        "order_seed": j,
                        "loss_se": 0.002,
                    }
                )
    return rows


def test_noise_is_told_apart_by_source_and_intervals_hold_it(tmp_path):
    held = []
    for draw in range(12):
        found = noise.study(evidence(tmp_path, replicated(0.004, 0.002, seed=draw)))
        for what, truth in (("one run's loss by initialisation", 0.4), ("one run's loss by data order", 0.2)):
            sd = number(found, what).estimate
            held.append(sd.lo <= truth <= sd.hi)
        total = number(found, "both, as the sum").estimate
        held.append(total.lo <= math.hypot(0.4, 0.2) <= total.hi)
    assert 29 <= sum(held) <= 36  # of 36 intervals of 90%
    ratio = number(found, "initialisation's variance").estimate
    assert ratio.lo <= 4 <= ratio.hi


def test_noise_that_grows_as_the_size_falls_is_seen_and_level_noise_is_not_called_a_trend(tmp_path):
    cells = {"sizes": (1e4, 3e4, 1e5, 3e5), "k": 8}
    exponents = []
    for draw in range(12):
        falling = noise.study(evidence(tmp_path, replicated(0.01, 0.01, power=-0.4, seed=draw, **cells)))
        exponents.append(number(falling, "N (exponent").estimate)
        assert "it changes with N" in falling.found
    assert np.mean([exponent.value for exponent in exponents]) == pytest.approx(-0.4, abs=0.03)
    assert sum(exponent.lo <= -0.4 <= exponent.hi for exponent in exponents) >= 9
    assert any("Bartlett" in note for note in falling.notes)
    level = [
        noise.study(evidence(tmp_path, replicated(0.01, 0.01, seed=draw, **cells))) for draw in range(12)
    ]
    assert sum("no dependence on N or D is seen" in found.found for found in level) >= 11
    assert sum(any("Bartlett" in note for note in found.notes) for found in level) <= 1


def test_noise_does_not_change_with_the_unit_of_the_loss(tmp_path):
    rows = replicated(0.004, 0.002)
    found = noise.study(evidence(tmp_path, rows))
    bits = noise.study(
        evidence(tmp_path, [{**row, "loss": float(row["loss"]) / math.log(2)} for row in rows])
    )
    assert [n.estimate.value for n in bits.numbers[:4]] == pytest.approx(
        [n.estimate.value for n in found.numbers[:4]]
    )


def test_seeds_that_order_follows_are_one_source(tmp_path):
    rows = [{**row, "order_seed": ""} for row in replicated(0.004, 0.0, k=6) if row["order_seed"] == 0]
    found = noise.study(evidence(tmp_path, rows))
    assert [n.what for n in found.numbers][0].startswith("one run's loss by both at once")


@pytest.mark.parametrize(
    "rows, reason",
    [
        (
            [row for row in replicated(0.004, 0.002) if row["seed"] == row["order_seed"] == 0],
            "differ by their seed",
        ),
        ([row for row in replicated(0.004, 0.002) if row["order_seed"] == 0], "one kind of seed alone"),
        (replicated(0.0, 0.0), "copies of one run"),
    ],
)
def test_noise_is_refused_without_replicates_of_both_kinds(tmp_path, rows, reason):
    with pytest.raises(ValueError, match=reason):
        noise.study(evidence(tmp_path, rows))


def test_the_noise_of_every_prediction_is_that_of_the_replicates_where_a_table_has_them():
    """A law that misses by 2% and replicates that agree to 0.2%: the noise is the latter."""
    rng = np.random.default_rng(0)
    N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e4, 1e6, 6), np.geomspace(1e6, 1e8, 6)))
    misfit = 0.02 * np.sin(1.3 * np.log(N)) * np.cos(0.9 * np.log(D))
    N, D, misfit = (np.repeat(values, 3) for values in (N, D, misfit))
    loss = (1.5 + 60 * N**-0.4 + 250 * D**-0.4) * np.exp(misfit + 0.002 * rng.standard_normal(len(N)))
    runs = as_runs(N, D, loss, cluster=[f"{i}" for i in range(len(N))])
    _, theta, problem = fit_law(SEPARABLE, runs)
    kriged = krige(problem, theta, runs.cluster)
    said = kriged.forecast(np.log([[3e6, 3e8]]), ["new"])
    assert math.sqrt(said.noise[0]) == pytest.approx(0.002, rel=0.35)


def test_satterthwaite_of_a_silent_source_is_the_other_one():
    loud, silent = Pooled(8.0, 16), Pooled(0.0, 16)
    assert loud.plus(silent).variance == loud.variance and loud.plus(silent).freedom == pytest.approx(16)


# --- gpt4 and ladder ------------------------------------------------------------------------------


def frontier(budgets, target, *, a=40.0, b=-0.12, E=0.7, sd=0.0, seeds=3, measured=True):
    """Compute-optimal runs of L = E + a·C^b with C = 6·N·D, and a holdout."""
    rng = np.random.default_rng(1)
    rows = []
    for C in (*np.repeat(budgets, seeds), target):
        loss = (E + a * C**b) * math.exp(sd * rng.standard_normal())
        role = "holdout" if C == target else "fit"
        N = math.sqrt(C / 120)
        rows.append({**RUN, "role": role, "params": N, "tokens": C / 6 / N, "flops": C, "seed": len(rows),
                     "loss": repr(float(loss)), "bits_per_byte": loss / math.log(2) / 4})  # fmt: skip
    return rows


BUDGETS = np.geomspace(1e8, 1e10, 9)


def with_measured(evidence, loss):
    rows = tuple(replace(row, loss=loss) if row.role == "holdout" else row for row in evidence.table.rows)
    return Evidence(replace(evidence.table, rows=rows))


def test_gpt4_recovers_the_law_and_the_final_loss_in_bits_a_byte(tmp_path):
    C = 1e13
    truth = 0.7 + 40 * C**-0.12
    found = gpt4.study(with_measured(evidence(tmp_path, frontier(BUDGETS, C)), truth))
    for share in ("1/1,000", "1/10,000"):
        predicted = number(found, f"loss predicted from {share}")
        assert (
            predicted.estimate.value == pytest.approx(truth / math.log(2) / 4, rel=1e-3)
            and predicted.unit == "bits a byte"
        )
        assert abs(number(found, f"error of that prediction, from {share}").estimate.value) < 0.1
        assert number(found, f"b, from {share}").estimate.value == pytest.approx(-0.12, rel=0.02)
        assert number(found, f"c, from {share}").estimate.value == pytest.approx(
            0.7 / math.log(2) / 4, rel=0.02
        )


def test_gpt4_never_looks_at_a_loss_that_was_not_predicted_nor_at_dearer_runs(tmp_path):
    rows = frontier(BUDGETS, 1e13)
    found = gpt4.study(evidence(tmp_path, rows))
    assert "has not been measured" in found.found
    dearer = {**rows[0], "params": 1e6, "tokens": 1e6, "flops": 6e12, "loss": 9.0, "run_id": "dear"}
    again = gpt4.study(evidence(tmp_path, [*rows, dearer]))
    assert number(again, "loss predicted").estimate == number(found, "loss predicted").estimate


def test_gpt4_also_looks_at_a_tenth_where_cheap_runs_are_of_another_regime(tmp_path):
    """Budgets up to a thousandth lie on a flatter line; those from there to a tenth on the target's own."""
    law, bent = (lambda C: 0.7 + 40 * C**-0.12), (lambda C: 2.5 + 2 * (C / 1e8) ** -0.4)
    rows = frontier(np.geomspace(1e8, 1e12, 17), 1e13)
    rows = [{**row, "loss": float(law(row["flops"]) if row["flops"] > 1.1e10 else bent(row["flops"]))} for row in rows]
    near = gpt4.study(with_measured(evidence(tmp_path, rows), law(1e13)))
    error = abs(number(near, "error of that prediction, from 1/10").estimate.value)
    cheap = abs(number(near, "error of that prediction, from 1/1,000").estimate.value)
    assert error < cheap / 2
    with_tenth = {n.what for n in near.numbers}
    without = {n.what for n in gpt4.study(evidence(tmp_path, frontier(BUDGETS, 1e13))).numbers}
    assert any(what.endswith("from 1/10") for what in with_tenth) and not any(w.endswith("from 1/10") for w in without)


def test_gpt4_takes_the_best_size_of_a_budget_with_all_its_seeds(tmp_path):
    rows = frontier(BUDGETS, 1e13, sd=0.003)
    worse = [
        {**row, "params": 3 * row["params"], "loss": float(row["loss"]) * 1.2}
        for row in rows
        if row["role"] == "fit"
    ]
    runs = evidence(tmp_path, [*rows, *worse]).table.runs
    kept = gpt4.along_frontier(runs)
    assert len(kept) == 27 and set(kept.run_id) == {f"row {i}" for i in range(1, 28)}


def test_gpt4_says_where_all_cheap_budgets_have_one_size(tmp_path):
    rows = [{**row, "params": 1472.0} if row["role"] == "fit" else row for row in frontier(BUDGETS, 1e13)]
    notes = gpt4.study(evidence(tmp_path, rows)).notes
    assert any("up to 1/10,000 are all of one size, 1.47k parameters" in note for note in notes)
    notes = gpt4.study(evidence(tmp_path, frontier(BUDGETS, 1e13))).notes
    assert not any("of one size" in note for note in notes)


def test_gpt4_says_what_it_cannot_show(tmp_path):
    found = gpt4.study(evidence(tmp_path, frontier(BUDGETS, 1e12)))  # two budgets at a ten-thousandth
    assert number(found, "loss predicted from 1/10,000").estimate is None
    assert "needs at least 4 runs" in number(found, "loss predicted from 1/10,000").note
    with pytest.raises(ValueError, match="runs up to 1e7 are wanted"):
        gpt4.study(evidence(tmp_path, frontier(BUDGETS, 1e10 + 1)))


def test_the_interval_of_a_compute_law_holds_a_new_run_about_nine_times_in_ten():
    held = 0
    for draw in range(20):
        rng = np.random.default_rng(draw)
        C = np.geomspace(1e9, 1e11, 8)
        loss = (1.0 + 60 * C**-0.18) * np.exp(0.004 * rng.standard_normal(8))
        law = fit_compute(as_runs(np.sqrt(C), np.sqrt(C) / 6, loss))
        new = (1.0 + 60 * 1e12**-0.18) * math.exp(0.004 * rng.standard_normal())
        interval = law.interval(1e12)
        held += interval.lo <= new <= interval.hi
    assert 15 <= held <= 20


def test_losses_that_do_not_fall_with_compute_have_no_law():
    C = np.geomspace(1e9, 1e12, 8)
    with pytest.raises(ValueError, match="does not describe|converge"):
        fit_compute(as_runs(np.sqrt(C), np.sqrt(C) / 6, 2.0 + 0.01 * np.log(C)))


def rungs(sizes, D=1e6, star=(3e5, 5e6)):
    def loss(N, D):
        return 1.0 + 30 * (6 * N * D) ** -0.15

    rows = [{**RUN, "params": N, "tokens": D, "loss": repr(loss(N, D)), "seed": 0} for N in sizes]
    return [
        *rows,
        {**RUN, "role": "holdout", "params": star[0], "tokens": star[1], "loss": repr(loss(*star))},
    ]


def test_a_ladder_recovers_its_law_and_its_star(tmp_path):
    rows = rungs((1e4, 2e4, 4e4, 8e4, 1.6e5))
    truth = float(rows[-1]["loss"])
    found = ladder.study(with_measured(evidence(tmp_path, rows), truth))
    assert number(found, "b, exponent").estimate.value == pytest.approx(-0.15, rel=0.01)
    assert number(found, "E, irreducible").estimate.value == pytest.approx(1.0, rel=0.01)
    error = next(n for n in found.numbers if "error of the prediction" in n.what).estimate
    assert abs(error.value) < 0.05 and any("takes more data for more size" in note for note in found.notes)
    assert "measured" not in ladder.study(evidence(tmp_path, rows)).found


def test_five_rungs_predict_their_star_before_it_is_measured(tmp_path):
    """Too few for a law of N and D: the ladder's own law predicts, and only where a ladder was planned."""
    rows = rungs((1e4, 2e4, 4e4, 8e4, 1.6e5))
    rows = [{**row, "params_non_embedding": row["params"], "run_id": f"r{i}"} for i, row in enumerate(rows)]
    truth, target = float(rows[-1]["loss"]), Target(3e5, 5e6, 6 * 3e5 * 5e6)
    evidence(tmp_path, rows[:-1])
    with pytest.raises(ValueError, match="needs at least 7 runs"):
        write_prediction(tmp_path, target)
    (tmp_path / "plan.json").write_text(json.dumps({"config": {"grid": {"studies": ["ladder"]}}}))
    made = write_prediction(tmp_path, target)
    assert (made.law, made.verdict, made.measured) == ("compute", Verdict.WEAK, None)
    assert made.loss == pytest.approx(truth, rel=1e-3) and made.lo90 < truth < made.hi90
    evidence(tmp_path, rows)
    analysis = analyse(tmp_path)
    assert analysis.predictions[-1].measured.loss == truth
    assert "and measured" in analysis.findings[0].found
    run(as_request({**OmegaConf.to_container(OmegaConf.load(CONF / "analysis.yaml")), "runs": str(tmp_path)}))
    assert read_predictions(tmp_path / "report" / "predictions.json") == analysis.predictions


def test_fewer_than_four_sizes_are_no_ladder(tmp_path):
    with pytest.raises(ValueError, match="3 sizes share one token count"):
        ladder.study(evidence(tmp_path, rungs((1e4, 2e4, 4e4))))


# --- shape ----------------------------------------------------------------------------------------


def shapes(penalty, *, alpha=0.08, sd=0.0, drop=()):
    """Width follows so that 12·L·d² is about N; loss is N^-alpha times 1 + penalty(row). Two seeds each."""
    rng = np.random.default_rng(2)
    wanted = [(N, 4, 2, 8 / 3) for N in (1e5, 2e5, 4e5, 8e5)]
    wanted += [(4e5, L, 2, 8 / 3) for L in (1, 2, 8, 16)] + [(4e5, 4, h, 8 / 3) for h in (1, 4)]
    wanted += [(4e5, 4, 2, ff) for ff in (2 / 3, 16 / 3)]
    rows = []
    for N, L, heads, ff in wanted:
        d = 4 * round(math.sqrt(N / L / (4 + 3 * ff)) / 4)
        row = {"n_layer": L, "d_model": d, "n_head": heads, "d_ff": 4 * round(ff * d / 4)}
        N = L * (4 * d * d + 3 * d * row["d_ff"])
        for seed in (0, 1):
            loss = 5 * N**-alpha * (1 + penalty(row)) * math.exp(sd * rng.standard_normal())
            more = {"params": N, "params_total": N + 257 * d, "tokens": 1e6, "seed": seed, "loss": repr(loss)}
            rows.append({**RUN, **{k: v for k, v in row.items() if k not in drop}, **more})
    return rows


def test_shapes_that_cost_nothing_are_said_to_cost_nothing(tmp_path):
    found = shape.study(evidence(tmp_path, shapes(lambda row: 0.0)))
    for axis in ("depth", "feed-forward", "heads"):
        assert abs(number(found, axis).estimate.value) < 0.01
    assert number(found, "loss for 1% more N").estimate.value == pytest.approx(-0.08)
    assert number(found, "depths off the base's curve, N non-embedding").estimate.value < 0.01
    assert number(found, "depths off the base's curve, N total").estimate.value > 0.1
    assert (
        "non-embedding counts bring them closer" in found.found
        and "size decides, shape hardly" in found.means
    )


def test_the_loss_that_a_shape_costs_is_recovered_within_its_interval(tmp_path):
    deep = shape.study(
        evidence(tmp_path, shapes(lambda row: 0.05 if row["n_layer"] == 16 else 0.0, sd=0.002))
    )
    worst = number(deep, "depth")
    assert worst.estimate.lo <= 5.0 <= worst.estimate.hi and worst.estimate.lo > 3
    assert number(deep, "heads").estimate.hi < 2
    assert "(width / depth = 2.75) loses" in deep.found
    assert "shape is not free; less than 3% is lost with width / depth of" in deep.means


def test_small_differences_in_size_are_compensated_by_the_curve(tmp_path):
    steep = shape.study(evidence(tmp_path, shapes(lambda row: 0.0, alpha=0.5)))
    assert abs(number(steep, "depth").estimate.value) < 0.01


@pytest.mark.parametrize(
    "rows, reason",
    [
        (shapes(lambda row: 0.0, drop=("n_head",)), "do not tell n_layer"),
        (
            [row for row in shapes(lambda row: 0.0) if row["params"] > 3e5 and row["params"] < 5e5],
            "trained at 1 sizes",
        ),
        (shapes(lambda row: 0.0)[:8], "no run differs from the base shape"),
    ],
)
def test_shape_is_refused_without_shapes_sizes_or_variation(tmp_path, rows, reason):
    with pytest.raises(ValueError, match=reason):
        shape.study(evidence(tmp_path, rows))
