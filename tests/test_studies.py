"""Studies: named by a grid or on the command line, shown by one renderer, refused where there is none."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from analysis_helpers import rows_of, sweep, write_table

import analysis.__main__ as entry
import analysis.sweep as steps
from analysis.estimate import Estimate
from analysis.finding import Chart, Finding, Number, Panel, Series, lines
from analysis.prediction import model
from analysis.report import write_report
from analysis.report.document import compose
from analysis.report.findings import _drawing
from analysis.studies import Evidence, StudyError, findings, load
from analysis.table import read_table

OWN = """
import numpy as np
from analysis.finding import Chart, Finding, Number, Panel, Series
from analysis.estimate import Estimate

def study(evidence):
    rows = evidence.finished()
    if len(rows) < 3:
        raise ValueError(f"{len(rows)} runs are too few; train 3.")
    loss = np.array([row.loss for row in rows])
    number = Number("mean loss", Estimate(loss.mean(), loss.min(), loss.max(), loss.std()), "nats", "1.69, a paper")
    dots = Series("runs", np.array([row.flops for row in rows]), loss, lo=loss * 0.99, hi=loss * 1.01)
    band = Series("range", dots.x, loss, "band", loss - 0.1, loss + 0.1)
    line = Series("mean", dots.x, np.full(len(loss), loss.mean()), "dashed")
    panel = Panel("Losses", "C, FLOPs", "loss, nats a token", (band, dots, line), log_y=True)
    return Finding("own.mean", "Mean loss", "nobody", f"The mean is {loss.mean():.3f}.", "Little.",
                   (number, Number("unknown", None, note="no data")), Chart("Dots are runs", (panel, panel, panel)),
                   ("A note with | a bar.",))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A study of the user's own, package own, module mean."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").touch()
    (tmp_path / "own" / "mean.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(model.__kwdefaults__, "resamples", 60)
    yield "own.mean"
    sys.modules.pop("own.mean", None), sys.modules.pop("own", None)


def folder_with(tmp_path, rows, studies):
    folder = tmp_path / "sweep"
    write_table(folder / "runs.csv", rows)
    plan = {"command": "sweep", "corpus": {}, "config": {"grid": {"studies": studies}}, "runs": []}
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def test_a_sweep_shows_its_grid_s_studies_in_both_formats(tmp_path, own):
    folder = folder_with(tmp_path, rows_of(sweep(0.003)), [own])
    found = steps.analyse(folder)
    (finding,) = found.findings
    assert found.fits and finding.study == own
    page = write_report(found, folder / "report").read_text()
    text = (folder / "report" / "report.md").read_text()
    for shown in (page, text):
        assert finding.found in shown and "1.69, a paper" in shown and "Mean loss: the numbers" in shown
    assert "no data" in page and "A note with | a bar." in page and r"A note with \| a bar." in text
    assert "study-own-mean" in page and (folder / "report" / "figures" / "study-own-mean.png").exists()
    stored = json.loads((folder / "report" / "fits.json").read_text())["findings"]
    assert stored[0]["numbers"][0]["estimate"]["value"] == finding.numbers[0].estimate.value
    write_report(replace(found, findings=()), folder / "report")
    assert not (folder / "report" / "figures" / "study-own-mean.png").exists()


def test_where_no_law_can_be_fitted_the_studies_are_shown_and_come_first(tmp_path, own):
    few = rows_of(sweep(0.003))[::12]
    found = steps.analyse(folder_with(tmp_path, few, [own]))
    assert not found.fits and found.findings[0].numbers
    page = write_report(found, tmp_path / "report").read_text()
    assert page.index("The mean is") < page.index("Mean loss: the numbers")
    with pytest.raises(ValueError):
        steps.analyse(folder_with(tmp_path, few, []))


@pytest.mark.parametrize("step", [1, 12])  # with a law, and with too few runs for one
def test_the_verdict_on_a_prediction_nobody_asked_for_stands_in_its_section_alone(tmp_path, own, step):
    folder = folder_with(tmp_path, rows_of(sweep(0.003))[::step], [own])
    found = steps.analyse(folder)
    told = compose(found)
    assert told.lede[0] == found.findings[0].found and told.badge == "" and len(told.lede) == 2
    (section,) = [s for s in told.sections if s.title == "Were a larger run to be predicted"]
    assert "10× the dearest run's compute" in section.opening[0] and section.points == found.reasons
    assert 'class="verdict' not in write_report(found, tmp_path / "r").read_text()
    refused = replace(found, findings=(Finding("x", "X", "", "", "", refused="no"),))
    target = replace(found, metadata={"config": json.dumps({"grid": {"target": {"flops": 1e13}}})})
    for asked in (refused, target, replace(found, findings=())):
        told = compose(asked)
        assert told.badge and told.lede[-1].startswith("The data ") and "an extrapolation" in told.lede[-1]
    assert compose(target).lede[0] == found.findings[0].found


def test_a_refusal_stands_in_its_section_and_the_others_go_on(tmp_path, own):
    found = steps.analyse(folder_with(tmp_path, rows_of(sweep(0.003))[:20:12], [own]))
    (finding,) = found.findings
    assert finding.refused == "2 runs are too few; train 3." and not finding.numbers
    assert (
        "No number is given: 2 runs are too few; train 3." in write_report(found, tmp_path / "r").read_text()
    )
    assert lines(found.findings) == ("Mean: no number: 2 runs are too few; train 3.",)


def test_a_foreign_table_gets_the_studies_that_are_asked_for(tmp_path, own, capsys):
    write_table(tmp_path / "t.csv", rows_of(sweep(0.003)))
    config = {"runs": str(tmp_path / "t.csv"), "out": str(tmp_path / "out"), "columns": {}, "law": "separable",
              "targets": None, "target": dict.fromkeys(("params", "tokens", "flops")), "studies": [own],
              "min_tokens_per_param": None, "min_steps": None}  # fmt: skip
    entry.run(entry.as_request(config))
    said = capsys.readouterr().out
    assert "Mean loss: The mean is" in said and "No target given" not in said
    with pytest.raises(entry.UsageError, match="studies=noise: wanted a list"):
        entry.as_request({**config, "studies": "noise"})
    with pytest.raises(StudyError, match="nosuch: there is no such study; there are"):
        entry.run(entry.as_request({**config, "studies": ["nosuch"]}))


def test_a_sweep_s_folder_shows_the_same_sections_whoever_asks(tmp_path, own, capsys):
    folder = folder_with(tmp_path, rows_of(sweep(0.003))[::12], [own])
    config = {"runs": str(folder), "out": None, "columns": {}, "law": "auto", "targets": None,
              "target": dict.fromkeys(("params", "tokens", "flops")), "studies": [],
              "min_tokens_per_param": None, "min_steps": None}  # fmt: skip
    entry.run(entry.as_request(config))
    assert "Mean loss: The mean is" in capsys.readouterr().out
    page = (folder / "report" / "index.html").read_text()
    assert steps.analyse(folder).findings[0].found in page


def test_an_unknown_study_or_a_module_without_one_is_refused(own):
    with pytest.raises(StudyError, match="package.module"):
        load("own.nothing")
    with pytest.raises(StudyError, match=r"no function study"):
        load("json.decoder")
    assert load(own)


def test_a_finding_may_have_neither_figure_nor_numbers(tmp_path, own):
    found = steps.analyse(folder_with(tmp_path, rows_of(sweep(0.003)), [own]))
    bare = Finding("x", "Bare", "", "Only this.", "")
    page = write_report(replace(found, findings=(bare,)), tmp_path / "r").read_text()
    assert "Only this." in page and "Bare: the numbers" not in page


@pytest.mark.parametrize("panels", [1, 2, 4])
def test_every_kind_of_series_is_drawn_on_one_to_four_panels(tmp_path, own, panels):
    found = steps.analyse(folder_with(tmp_path, rows_of(sweep(0.003)), []))
    x = np.geomspace(1e-3, 1e13, 6)
    series = tuple(Series(f"s{i}", x, x * (i + 1), kind, x * 0.5, x * 2.0) for i, kind in enumerate(
        ("dots", "line", "dashed", "band", "dots", "line")))  # fmt: skip
    panel = Panel("t", "x", "y", series, log_y=True)
    number = Number("v", Estimate(1.0, np.nan, np.nan, np.nan))
    finding = Finding("x", "X", "", "f", "m", (number,), Chart("c", (panel,) * panels))
    assert "study-x" in write_report(replace(found, findings=(finding,)), tmp_path / "r").read_text()


def test_an_interval_without_end_flattens_no_values_and_is_told():
    x, y = np.arange(3.0), np.array([0.5, 0.6, 0.7])
    for hi, cut in ((y + 0.3, False), (y + 14, True)):
        series = Series("a", x, y, lo=y - 0.1, hi=hi)
        panel = Panel("t", "x", "y", (series,), log_x=False, x_names=("one", "two", "three"))
        finding = Finding("x", "X", "", "f", "m", chart=Chart("Caption", (panel, panel)))
        drawing = _drawing(finding, finding.chart)
        axes = drawing.figure.axes[0]
        assert axes.get_ylim()[1] == pytest.approx(1.3) if cut else axes.get_ylim()[1] > 1.0
        assert drawing.caption.endswith("beyond it.") is cut and drawing.title == "X"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["one", "two", "three"]


def test_a_study_sees_a_holdout_s_loss_only_once_it_is_predicted(tmp_path, own):
    rows = rows_of(sweep(0.003))
    rows[-1]["role"] = "holdout"
    write_table(tmp_path / "runs.csv", rows)
    table = read_table(tmp_path / "runs.csv", {"params": "params_non_embedding"})
    assert [row.loss for row in table.rows if row.role == "holdout"] == [None]
    assert findings([own], Evidence(table))[0].numbers
