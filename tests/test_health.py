"""Health: planted sick runs are found, healthy ones and tables that say nothing are left in peace."""

from __future__ import annotations

import csv
import json
import math
import re

import numpy as np
import pytest
from analysis.prediction import model
from analysis_helpers import holdout_row, rows_of, sweep, target, true_loss, write_table

import analysis.sweep as steps
from analysis.health import WEBTEXT_BYTES, concerns, critical_batch, examine, read_course, with_health
from analysis.table import SWEEP_RULES, read_table
from analysis.values import HealthFinding

STEPS = 2000
COLUMNS = {"params": "params_non_embedding"}


def course(decay=0.2, end=0.0, seed=0, first=0, peak=0.01) -> list[dict]:
    """metrics.jsonl of a healthy run, a line each 20 steps: a power law with noise of 1%, linear decay."""
    rng = np.random.default_rng(seed)
    start = STEPS * (1 - decay)
    lines = []
    for step in range(20, STEPS + 1, 20):
        progress = max(0.0, (step - 1 - start) / (STEPS - start)) if decay else 0.0
        rate = peak * min(step / 100, 1.0, end + (1 - end) * (1 - progress))
        loss = (1.5 + 8 * step**-0.5) * math.exp(0.01 * rng.standard_normal())
        norm = 0.5 * math.exp(0.2 * rng.standard_normal())
        lines.append({"step": step, "loss": loss, "lr": rate, "grad_norm": norm})
    return [line for line in lines if line["step"] > first]


def write_course(folder, run_id: str, lines: list[dict]) -> None:
    path = folder / "runs" / run_id / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def spiked(
    lines: list[dict], line: int, factor: float, key: str = "loss", until: int | None = None
) -> list[dict]:
    return [
        {**values, key: values[key] * factor} if line <= i < (until or line + 1) else values
        for i, values in enumerate(lines)
    ]


def healthy_folder(folder):
    write_table(folder / "runs.csv", rows_of(sweep(0.003)))
    return folder


def found(folder, lines) -> list[HealthFinding]:
    healthy_folder(folder)
    write_course(folder, "r003", lines)
    table = read_table(folder / "runs.csv", COLUMNS, SWEEP_RULES)
    return list(examine(table, folder))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decay, end, first", [(0.2, 0.0, 0), (1.0, 0.1, 0), (0.1, 0.0, 0), (0.2, 0.0, 1600)])
def test_healthy_runs_have_no_findings(tmp_path, seed, decay, end, first):
    assert found(tmp_path, course(decay, end, seed, first)) == []


@pytest.mark.parametrize("power, findings", [(1.0, 1), (2.0, 0)])
def test_where_batches_grow_the_cooldown_is_a_share_of_the_tokens(tmp_path, power, findings):
    """8% of the updates, which hold 15.4% of the tokens where these go with the square of the updates."""
    lines = [{**line, "tokens": line["step"] ** power} for line in course(decay=0.08)]
    assert len(found(tmp_path, lines)) == findings


def test_one_lucky_line_of_a_short_branch_is_no_low_that_it_was_thrown_back_from(tmp_path):
    """The lines of a healthy branch at cpu scale: N=143,424, C=5e11, batches of one and two sequences."""
    losses = [1.865, 1.871, 1.822, 1.745, 1.728, 1.746, 1.684, 1.762, 1.724, 1.751, 1.79, 1.776, 1.524, 1.676, 1.661, 1.773]
    branch = course(first=1680)
    assert len(branch) == len(losses)
    lines = [{**line, "loss": loss} for line, loss in zip(branch, losses, strict=True)]
    assert "diverged" not in {finding.kind for finding in found(tmp_path, lines)}


def test_a_gradient_that_spikes_alone_is_an_odd_batch(tmp_path):
    assert found(tmp_path, spiked(course(), 60, 30.0, "grad_norm")) == []


@pytest.mark.parametrize(
    "lines, kind, says",
    [
        (course(decay=0.0), "undercooled", "its rate ended at 100% of the peak, over 20%"),
        (course(decay=0.3, end=0.5), "undercooled", "its rate ended at 5.% of the peak"),
        (course(decay=0.04), "undercooled", "its rate came down over 4.0% of its tokens, under 10%"),
        (
            course(decay=0.04, first=1920),
            "undercooled",
            "its rate came down over 4.0% of its tokens",
        ),  # a branch
        (
            spiked(course(), 85, 1.08, until=100),
            "diverged",
            "its training loss ended [5-9].*% above its lowest",
        ),
        (
            spiked(course(), 60, 1.5),
            "spiking",
            r"its training loss spiked by \d+ standard deviations at step 1220",
        ),
        (
            spiked(spiked(course(), 60, 1.05), 60, 30.0, "grad_norm"),
            "spiking",
            "its gradient norm spiked by .* at step 1220",
        ),
    ],
)
def test_a_sick_course_is_found_with_what_it_was(tmp_path, lines, kind, says):
    finding = found(tmp_path, lines)[0]
    assert finding.run_id == "r003" and finding.kind == kind
    assert re.match(says, finding.says), finding.says
    assert finding.excluded is (kind != "spiking")
    assert finding.source


def test_what_is_excluded_is_in_no_fit_and_listed_and_the_others_are_all_there(tmp_path):
    healthy_folder(tmp_path)
    write_course(tmp_path, "r003", course(decay=0.0))
    write_course(tmp_path, "r004", spiked(course(), 60, 1.5))
    before = read_table(tmp_path / "runs.csv", COLUMNS, SWEEP_RULES)
    table = with_health(before, tmp_path)
    assert set(before.runs.run_id) - set(table.runs.run_id) == {"r003"}
    assert [exclusion.run_id for exclusion in table.exclusions] == ["r003"]
    row = next(row for row in table.rows if row.run_id == "r003")
    assert row.reason == table.exclusions[0].reason == table.health[0].says
    assert table.digest == before.digest


def test_undercooled_runs_are_kept_where_they_are_the_rule(tmp_path):
    healthy_folder(tmp_path)
    for i in range(16):
        write_course(tmp_path, f"r{i:03d}", course(decay=0.0, seed=i))
    table = with_health(read_table(tmp_path / "runs.csv", COLUMNS, SWEEP_RULES), tmp_path)
    assert len(table.runs) == 30 and len(table.health) == 16
    assert not any(finding.excluded for finding in table.health)
    assert concerns(table.health, 30) == ("Of 30 fitted runs 16 undercooled: see the health of the runs.",)


def test_a_table_that_says_its_rates_had_not_decayed(tmp_path):
    runs = sweep(0.003)
    path = tmp_path / "table.csv"
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["params", "tokens", "loss", "decayed"])
        rows = zip(runs.params, runs.tokens, runs.loss, strict=True)
        writer.writerows([*row, int(i > 2)] for i, row in enumerate(rows))
    table = with_health(read_table(path))
    assert {finding.kind for finding in table.health} == {"undercooled"}
    assert [exclusion.run_id for exclusion in table.exclusions] == ["row 1", "row 2", "row 3"]


def test_too_few_steps_are_excluded_by_the_rules_and_only_told_without(tmp_path):
    rows = rows_of(sweep(0.003))
    rows[5]["batch_tokens"] = float(rows[5]["tokens"]) / 50
    write_table(tmp_path / "runs.csv", rows)
    for rules, excluded in ((SWEEP_RULES, True), (type(SWEEP_RULES)(), False)):
        table = with_health(read_table(tmp_path / "runs.csv", COLUMNS, rules))
        (finding,) = table.health
        assert (finding.run_id, finding.kind, finding.excluded) == ("r005", "too few steps", excluded)
        assert finding.value == pytest.approx(50) and finding.threshold == 100
        assert ("r005" in table.runs.run_id) is not excluded
        assert len(table.exclusions) == excluded  # not a second time


def test_critical_batch_is_kaplans_and_its_tokens_are_converted(tmp_path):
    assert critical_batch(3.0) == pytest.approx(2.1e8 / 3**4.8)
    # the same text in bytes: a loss of 3 nats for WEBTEXT_BYTES bytes
    rows = rows_of(sweep())[:1]
    bits = 3.0 / WEBTEXT_BYTES / math.log(2)
    for batch, sick in ((0.99 * critical_batch(3.0), False), (1.01 * critical_batch(3.0), True)):
        whole = {"loss": 3.0, "batch_tokens": batch, "tokens": 200 * batch}
        as_bytes = {
            "loss": 3.0 / WEBTEXT_BYTES,
            "bits_per_byte": bits,
            "batch_tokens": batch * WEBTEXT_BYTES,
            "tokens": 200 * batch * WEBTEXT_BYTES,
        }
        for values in (whole, as_bytes):
            write_table(tmp_path / "runs.csv", [{**rows[0], **values, "params_non_embedding": 100}])
            findings = examine(read_table(tmp_path / "runs.csv", COLUMNS))
            assert [finding.kind for finding in findings] == ["batch above critical"] * sick
            assert not any(finding.excluded for finding in findings)


def test_holdouts_are_looked_at_only_once_they_are_predicted(tmp_path, monkeypatch):
    monkeypatch.setitem(model.__kwdefaults__, "resamples", 60)
    spot = target()
    holdout = holdout_row(spot, float(true_loss(spot.params, spot.tokens)))
    write_table(tmp_path / "runs.csv", [*rows_of(sweep(0.003)), {**holdout, "status": "planned", "loss": ""}])
    write_course(tmp_path, "target", course(decay=0.0))
    steps.write_prediction(tmp_path, spot)
    write_table(tmp_path / "runs.csv", [*rows_of(sweep(0.003)), holdout])
    assert steps.runs_table(tmp_path).health == ()
    analysis = steps.analyse(tmp_path)
    (finding,) = analysis.health
    assert (finding.run_id, finding.kind, finding.excluded) == ("target", "undercooled", False)
    assert any("target" in problem and "its rate ended at 100%" in problem for problem in analysis.problems)
    lines = (tmp_path / "report" / "health.csv").read_text().splitlines()
    assert lines[0] == "run_id,kind,says,value,threshold,source,excluded" and len(lines) == 2


def test_lines_that_are_cut_off_or_written_twice_or_no_training(tmp_path):
    path = tmp_path / "runs" / "a" / "metrics.jsonl"
    path.parent.mkdir(parents=True)
    lines = [
        {"step": 20, "loss": 5.0, "lr": 0.1, "grad_norm": 1.0},
        {"step": 20, "eval_loss": 1.0},
        {"step": 40, "loss": 4.0, "lr": 0.1},
        {"step": 40, "loss": 4.5, "lr": 0.1},
        {"step": 60, "loss": math.nan, "lr": 0.1},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 80, "lo')
    read = read_course(tmp_path, "a")
    assert read.step.tolist() == [20, 40] and read.loss.tolist() == [5.0, 4.5]
    assert math.isnan(read.grad_norm[1])
    assert read_course(tmp_path, "b") is None and read_course(tmp_path, "../runs/a") is None


def test_tables_that_say_nothing_have_no_findings(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("params,tokens,loss\n1e6,1e8,3\n2e6,1e8,2.9\n")
    assert examine(read_table(path)) == ()
    assert concerns((), 2) == ()
    mild = HealthFinding("a", "spiking", "x", 8, 7, "s", False)
    assert concerns((mild,), 30) == () and "1 spiking" in concerns((mild,), 2)[0]
