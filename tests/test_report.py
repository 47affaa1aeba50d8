"""The report: every case renders, says what a decision rests on, and lets nothing through unescaped."""

from __future__ import annotations

import csv
import dataclasses
import html.parser
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from report_samples import (
    BUDGETS,
    CASES,
    PUBLISHED,
    E,
    estimate,
    sample_analysis,
    sample_bias,
    sample_conventions,
    sample_fit,
    sample_isoflops,
    sample_prediction,
    sample_remedies,
    sample_rows,
    sample_runs,
    true_loss,
    without_results,
)

from analysis import store
from analysis.ensemble import fit_members
from analysis.report import theme, words, write_report
from analysis.report.document import compose
from analysis.report.figures import isoflop_curves, loss_against_compute
from analysis.report.optimum import contours
from analysis.report.tables import ROWS_SHOWN, Table
from analysis.surfaces import loss_surface
from analysis.values import (
    Analysis,
    EntropyCheck,
    Estimate,
    Exclusion,
    Parameter,
    PublishedAllocation,
    RunRow,
    Runs,
    Skipped,
    Target,
    Verdict,
    latest,
)
from analysis.verdict import IN_BACKTESTS, UNTESTED


class Page(html.parser.HTMLParser):
    """Checks that every element is closed by its own tag, and collects ids and outside references."""

    VOID = {"meta", "br", "link", "img", "hr"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.collect(attributes)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self.collect(attributes)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def collect(self, attributes):
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href"):
                self.references.append(value)


@pytest.fixture(scope="module", params=CASES)
def report(request, tmp_path_factory) -> tuple[str, Analysis, Path]:
    analysis = CASES[request.param]()
    out = tmp_path_factory.mktemp("report")
    assert write_report(analysis, out) == out / "index.html"
    return request.param, analysis, out


@pytest.fixture(scope="module")
def clean_tags(tmp_path_factory) -> set[str]:
    """Tags of a page in which no name has any markup in it."""
    return Page(write_report(sample_analysis(), tmp_path_factory.mktemp("clean")).read_text()).tags


def test_page_is_well_formed_and_self_contained(report):
    text = (report[2] / "index.html").read_text()
    page = Page(text)
    assert "script" not in page.tags and "link" not in page.tags
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert not re.search(r"url\((?!#)|@import|\b(nan|inf|Undefined|None(?! of))\b", text)
    assert len(page.ids) == len(set(page.ids))
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)
    assert len(text) < 1_000_000


def test_markdown_says_the_same_and_its_figures_are_there(report):
    _, analysis, out = report
    text = (out / "report.md").read_text()
    drawn = {path.stem for path in (out / "figures").glob("*.svg")}
    document = compose(analysis, drawn)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    wanted = [document.title]
    for section in document.sections:
        wanted += [
            section.title,
            *(t.title for t in section.tables),
            *(listing.title for listing in section.listings),
        ]
    assert headings == wanted
    images = re.findall(r"\]\((figures/[^)]*)\)", text)
    assert {Path(image).stem for image in images} == drawn
    assert all((out / image).is_file() and (out / image).with_suffix(".png").is_file() for image in images)
    for block in re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_figures_are_xml_in_both_modes_with_no_colour_left_fixed(report):
    for path in (report[2] / "figures").glob("*.svg"):
        root = ElementTree.fromstring(path.read_text())
        styles = " ".join(element.get("style", "") for element in root.iter())
        assert "prefers-color-scheme" in path.read_text() and "var(--figure-" in styles
        assert not re.findall(r"#[0-9a-f]{6}", styles)


def test_lede_says_prediction_outcome_and_verdict_in_three_sentences(report):
    name, analysis, out = report
    lede = compose(analysis).lede
    assert len(lede) == 3
    page = (out / "index.html").read_text()
    assert page.index(lede[0]) < page.index("<main>")
    if analysis.predictions:
        assert "1.548" in lede[0] and "1.513 to 1.584" in lede[0] and "497k non-embedding" in lede[0]
        assert "10× the dearest run" in lede[0]
        assert lede[2].startswith(
            "The data support this extrapolation only weakly: it extrapolates 10×; one of 5"
        )
    if name == "scored":
        assert "1.5600 ± 0.0020" in lede[1] and "0.77% too low" in lede[1] and "inside" in lede[1]
    if name == "outside":
        assert "8.9% too low" in lede[1] and "outside" in lede[1]
    if name == "unscored":
        assert "not scored" in lede[1]
    if name == "no target":
        assert lede[0] == "No target run was predicted." and "35 runs from 1.0e11 to 1.0e12 FLOPs" in lede[1]
    if name == "all failed":
        assert (
            "None of the 3 runs" in lede[1] and "do not support an extrapolation: no run finished." in lede[2]
        )


def test_problems_stand_before_the_first_figure(report):
    _, analysis, out = report
    page = (out / "index.html").read_text()
    assert analysis.problems
    for problem in analysis.problems:
        assert page.index(problem) < page.index("<main>")


def tables_of(analysis: Analysis) -> dict[str, Table]:
    return {table.title: table for section in compose(analysis).sections for table in section.tables}


def test_every_run_law_and_exclusion_is_in_its_table():
    sample = sample_analysis()
    tables = tables_of(sample)
    assert [row[0] for row in tables["Every run"].rows] == [row.run_id for row in sample.rows]
    assert [row[:2] for row in tables["Not used in any fit"].rows] == [
        (e.run_id, e.reason) for e in sample.exclusions
    ]
    assert "at bound: E sits on 0" in tables["Laws"].rows[2]
    assert len(tables["Parameters"].rows) == sum(len(fit.parameters) for fit in sample.fits)
    exponents = tables["Exponents beside published ones"].rows
    assert [row[0] for row in exponents] == ["this analysis"] * 5 + [p.who for p in PUBLISHED]
    assert len(tables["Optimum of each budget"].rows) == len(BUDGETS)


def test_every_reading_of_approach_2_stands_in_the_order_of_the_approaches():
    rows = tables_of(sample_analysis())["Exponents beside published ones"].rows[:5]
    wanted = ["approach 1", "approach 2, parabola", "approach 2, cubic", "approach 2, joint", "approach 3"]
    assert [row[1] for row in rows] == wanted
    assert rows[2][2:6] == ("0.507", "[0.482, 0.532]", "0.493", "[0.468, 0.518]")


def test_the_bias_of_approach_2_is_that_of_the_heaviest_law_with_its_causes():
    bias = tables_of(sample_analysis())["Bias of approach 2 on these budgets"]
    assert "coupled law" in bias.note and "a 0.513" in bias.note and "250k at 1.0e13 FLOPs" in bias.note
    shown = {row[:2]: row[2:] for row in bias.rows}
    assert shown["parabola", "as run"][:2] == ("+0.012", "+12.7%")  # 100·(e^0.12 - 1)
    assert shown["cubic", "as run"] == ("–", "–", "")
    assert shown["joint", "as run"][:2] == ("-0.003", "-3.0%")
    assert shown["parabola", "narrow"] == ("+0.001", "+1.0%", "")
    causes = dict(cause.rsplit(" ", 1) for cause in shown["parabola", "as run"][2].split(", "))
    wanted = {"unequal cost": "+3.0%", "off centre": "+5.1%", "width": "+3.0%", "rest": "+1.0%"}
    assert causes == wanted
    product = np.prod([1 + float(value.rstrip("%")) / 100 for value in causes.values()])
    assert product == pytest.approx(np.exp(0.12), abs=2e-3)
    unpredicted = tables_of(sample_analysis(predictions=()))["Bias of approach 2 on these budgets"]
    assert "separable law" in unpredicted.note


def test_each_way_of_counting_is_shown_with_the_spread_over_them():
    ways = tables_of(sample_analysis())["If N and C were counted otherwise"]
    assert ways.rows == (
        ("params_non_embedding (this analysis)", "flops", "497k", "as given", "1.5450", "0.513"),
        ("params_non_embedding", "6·N·D", "497k", "as given", "1.5450", "0.498"),
        ("params_total", "flops", "610k", "extrapolated beyond the runs", "1.5610", "0.471"),
    )
    assert "up to 1.0%" in ways.note and "0.471 to 0.513" in ways.note  # 1.561 / 1.545
    assert ways.note.endswith("Not fitted: N counted by N: 2 of 35 runs have none.")


def test_runs_to_add_and_what_the_interval_is_made_of():
    tables = tables_of(sample_analysis())
    added = tables["Runs that would help most"].rows
    assert added == (("400k", "420k", "1.0e12", "81.0%"), ("8.00k", "21.0M", "1.0e12", "63.7%"))
    spread = tables["What the interval is made of"].rows
    assert [row[0] for row in spread] == list(sample_prediction().spread)
    assert spread[1][1] == "0.50%" and all(len(row[2].split()) > 2 for row in spread)


def test_a_fit_tells_its_basins_and_its_condition():
    laws = tables_of(sample_analysis())["Laws"]
    shown = dict(zip((column.name for column in laws.columns), laws.rows[0], strict=True))
    assert (shown["starts at the optimum"], shown["basins"]) == ("11 of 12", "2")
    assert shown["condition number"] == "7.3e+03"


def test_what_is_not_there_has_no_table():
    left = tables_of(sample_analysis(isoflop_bias=(), conventions=None, advice=(), remedies=()))
    gone = {"Bias of approach 2 on these budgets", "If N and C were counted otherwise"}
    assert set(tables_of(sample_analysis())) - set(left) == {*gone, "Runs that would help most"}
    assert len(left["Exponents beside published ones"].rows) == 3 + len(PUBLISHED)


def test_a_configuration_is_shown_in_indented_lines():
    recipe = compose(sample_analysis()).sections[-1].listings[-1]
    assert recipe.title == "recipe"
    assert recipe.text.splitlines() == [
        "grid:",
        "  budgets: [100000000000.0, 1000000000000.0]",
        "  name: isoflop",
        'notes: ["a cell was added"]',
    ]
    nested = sample_analysis(metadata={"runs": '[{"seed": 1, "sizes": {}}, "x"]', "empty": "{}", "n": "3"})
    (section,) = [s for s in compose(nested).sections if s.title == "How to reproduce this"]
    assert section.listings[0].text.splitlines() == ["-", "  seed: 1", "  sizes: {}", "- x"]
    assert section.tables[0].rows == (("empty", "{}"), ("n", "3"))


def test_tally_counts_every_row_once():
    sample = sample_analysis()
    tally = compose(sample).tally
    assert tally == "39 runs in the table: 35 fitted, 1 held out, 1 failed, 1 diverged, 1 excluded"


@pytest.mark.parametrize("planted", ['"><script>alert(1)</script>', "a|b `c` *d* [e](f) $x$ \\"])
def test_names_from_users_are_text_everywhere(tmp_path, clean_tags, planted):
    runs = sample_runs()
    isoflops = tuple(
        dataclasses.replace(i, group=planted, bracketed=False, reason=planted) for i in sample_isoflops(runs)
    )
    rows = tuple(
        dataclasses.replace(row, run_id=planted, group=planted, reason=planted) for row in sample_rows(runs)
    )
    bias = sample_bias()
    bias = dataclasses.replace(
        bias,
        law=planted,
        methods=tuple(dataclasses.replace(reading, method=planted) for reading in bias.methods),
    )
    conventions = sample_conventions()
    conventions = dataclasses.replace(
        conventions,
        law=planted,
        conventions=tuple(
            dataclasses.replace(way, params=planted, flops=planted, mapping=planted)
            for way in conventions.conventions
        ),
        skipped=(Skipped(planted, planted),),
    )
    sample = sample_analysis(
        title=planted,
        params_kind=planted,
        rows=rows,
        isoflops=isoflops,
        problems=(planted,),
        reasons=(planted,),
        exclusions=(Exclusion(planted, planted),),
        skipped=(Skipped(planted, planted),),
        published=(PublishedAllocation(planted, planted, 0.5, 0.5, planted),),
        remedies=tuple(dataclasses.replace(a, method=planted, reason=planted) for a in sample_remedies()),
        isoflop_bias=(bias,),
        conventions=conventions,
        metadata={"command": planted, planted: planted, "config": f"```\n{planted}\n````"},
    )
    page = Page(write_report(sample, tmp_path).read_text())
    assert page.tags == clean_tags
    for path in (tmp_path / "figures").glob("*.svg"):
        ElementTree.fromstring(path.read_text())
    markdown = (tmp_path / "report.md").read_text()
    outside_fences = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    assert planted not in outside_fences
    assert "`````text" in markdown


def test_ten_thousand_runs_stay_small_and_say_what_is_left_out(tmp_path):
    rng = np.random.default_rng(2)
    params, tokens = np.exp(rng.uniform(9, 14, 10_000)), np.exp(rng.uniform(14, 18, 10_000))
    ids, loss = tuple(f"r{i}" for i in range(10_000)), true_loss(params, tokens)
    runs = Runs(ids, ("",) * 10_000, ids, params, tokens, 6 * params * tokens, loss, np.full(10_000, np.nan))
    rows = tuple(
        RunRow(i, "", "fit", "finished", N, D, 6 * N * D, L, None, None, None)
        for i, N, D, L in zip(ids, params, tokens, loss, strict=True)
    )
    fit = sample_fit("separable", runs, {"E": E})
    exclusions = tuple(Exclusion(f"x{i}", "diverged") for i in range(5000))
    write_report(
        sample_analysis(runs=runs, rows=rows, fits=(fit,), isoflops=(), exclusions=exclusions), tmp_path
    )
    page = (tmp_path / "index.html").read_text()
    assert len(page) < 1_000_000
    assert f"The dearest {ROWS_SHOWN} of 10,000 runs" in page and f"The first {ROWS_SHOWN} of 5,000" in page
    dearest = ids[int(np.argmax(runs.flops))]
    assert f">{dearest}<" in page


def test_a_report_is_the_same_each_time_and_replaces_the_last(tmp_path):
    first = write_report(sample_analysis(), tmp_path).read_text()
    assert write_report(without_results(), tmp_path).read_text() != first
    assert list((tmp_path / "figures").iterdir()) == []
    assert write_report(sample_analysis(), tmp_path).read_text() == first


def test_the_headline_is_the_latest_prediction_of_the_dearest_target():
    small = Target(1e5, 3e6, 2e12)
    old = sample_prediction(created="2026-11-22T10:00:00+00:00")
    new, other = (
        sample_prediction(measured=1.56),
        sample_prediction(target=small, created="2026-11-24T10:00:00+00:00"),
    )
    sample = sample_analysis(predictions=(other, new, old))
    assert latest(sample.predictions) == (other, new)
    assert "1.0e13 FLOPs" in compose(sample).lede[0]
    assert compose(sample).lede[1].endswith("inside the interval.")
    table = compose(sample).sections[0].tables[0]
    assert len(table.rows) == 3


def test_many_scored_targets_are_counted_in_the_lede_and_one_is_labelled():
    made = tuple(
        sample_prediction(measured=loss, target=Target(1e5, 3e6, flops))
        for loss, flops in ((1.55, 2e12), (1.70, 3e12), (1.56, 4e12), (1.56, 5e12))
    )
    sample = sample_analysis(predictions=(*made, sample_prediction()))
    assert "not scored; of 4 other targets measured, 3 came out inside" in compose(sample).lede[1]
    axes = loss_against_compute(sample).figure.axes[0]
    assert [text.get_text() for text in axes.texts if "predicted" in text.get_text()] == ["predicted 1.548"]


def test_tables_hold_every_target_backtest_and_exclusion(tmp_path):
    other = sample_prediction(target=Target(1e5, 3e6, 2e12))
    unrecorded = dataclasses.replace(other, created="2026-11-20T10:00:00+00:00", extrapolation=None)
    sample = sample_analysis(predictions=(unrecorded, other, sample_prediction(measured=1.56)))
    store.write_results(tmp_path, sample)
    read = {path.stem: list(csv.DictReader(open(path))) for path in tmp_path.glob("*.csv")}
    assert [float(row["extrapolation"]) for row in read["predictions"]] == pytest.approx([2.0, 10.0])
    first, second = read["predictions"]
    assert (first["measured_loss"], first["inside"]) == ("", "") and second["inside"] == "True"
    assert list(first)[:9] == "params tokens flops loss lo90 hi90 law extrapolation verdict".split()
    assert len(read["backtest"]) == len(sample.backtests)
    for row, of in zip(read["backtest"], sample.backtests, strict=True):
        assert (row["run_id"], row["law"]) == (of.run_id, of.law)
        assert float(row["log_error"]) == pytest.approx(np.log(of.predicted / of.measured))
        assert (row["lo90"] == "") == (of.lo90 is None)
    assert [row["run_id"] for row in read["exclusions"]] == [e.run_id for e in sample.exclusions]


def test_predictions_from_before_the_extrapolation_was_recorded_still_load(tmp_path):
    store.write_predictions(tmp_path / "p.json", (sample_prediction(),))
    text = (tmp_path / "p.json").read_text()
    old = re.sub(r',\s*"extrapolation": [0-9.]+', "", text)
    assert old != text
    (tmp_path / "p.json").write_text(old)
    assert store.read_predictions(tmp_path / "p.json")[0].extrapolation is None


def test_coverage_stands_beside_the_interval_and_sums_over_distances():
    sample = sample_analysis()
    combined = [row for row in sample.backtests if row.law == "combined"]
    inside = sum(row.inside for row in combined)
    assert f"such intervals held {inside} of {len(combined)} times" in compose(sample).lede[0]
    by_distance = [r for r in sample.records_by_distance if r.law == "combined"]
    assert (sum(r.inside for r in by_distance), sum(r.n for r in by_distance)) == (inside, len(combined))
    assert "untested" in compose(sample_analysis(backtests=())).lede[0]
    for told in (f"{IN_BACKTESTS} 14 of 15 dearer runs fell in their interval", UNTESTED):
        prediction = dataclasses.replace(sample_prediction(), reasons=(told,))
        for backtests in (sample.backtests, ()):
            lede = compose(sample_analysis(predictions=(prediction,), backtests=backtests)).lede
            assert lede[0].endswith("(±2.3%).") and told in lede[2]
    errors = [100 * abs(row.predicted / row.measured - 1) for row in combined]
    (record,) = [r for r in sample.records if r.law == "combined"]
    assert record.error_pct == pytest.approx(np.mean(errors))


def test_the_surface_is_the_weighted_law_on_a_grid_that_holds_every_run():
    runs = sample_runs()
    members, _ = fit_members(runs, resamples=30)
    weights = {"separable": 0.25, "coupled": 0.75}
    laws = [(member, weights[member.law.name]) for member in members if member.law.name in weights]
    surface = loss_surface(laws, runs.params, runs.tokens)
    i, j = 7, 40
    alone = {
        m.law.name: m.law.loss_at(m.fit.values, params=surface.params[j], tokens=surface.tokens[i])
        for m in members
    }
    wanted = alone["separable"] ** 0.25 * alone["coupled"] ** 0.75
    assert surface.loss[i, j] == pytest.approx(wanted, rel=1e-9)
    assert surface.params[0] < runs.params.min() and surface.tokens[-1] > runs.tokens.max()


def test_a_verdict_that_changed_since_the_prediction_comes_first():
    sample = sample_analysis(verdict=Verdict.NOT_SUPPORTED, reasons=("the laws disagree",))
    assert "“weak”" in compose(sample).problems[0] and "the laws disagree" in compose(sample).problems[0]


def test_many_problems_are_all_told_the_worst_first_and_the_rest_at_the_end(tmp_path):
    told = tuple(f"Problem number {i}." for i in range(30))
    document = compose(sample_analysis(problems=told))
    assert document.problems == (*told[:8], "22 further problems at the end of this report.")
    page = write_report(without_results(problems=told), tmp_path).read_text()
    markdown = (tmp_path / "report.md").read_text()
    assert all(page.count(problem) == 1 and markdown.count(problem) == 1 for problem in told)
    assert page.index(told[7]) < page.index("<main>") < page.index(told[8])


def test_an_interval_without_end_does_not_stretch_the_isoflop_figure():
    isoflops = sample_isoflops(sample_runs())
    endless = dataclasses.replace(
        isoflops[0], params_opt=Estimate(isoflops[0].params_opt.value, 1e-6, 1e21, 1.0)
    )
    before, after = (
        isoflop_curves(sample_analysis(isoflops=curves)).figure.axes[0].get_xlim()
        for curves in (isoflops, (endless, *isoflops[1:]))
    )
    assert before == after


def test_a_contour_is_not_labelled_where_the_star_lies():
    def shown(*predictions) -> dict[tuple[float, float], bool]:
        axes = contours(sample_analysis(predictions=predictions)).figure.axes[0]
        return {text.get_position(): text.get_visible() for text in axes.texts}

    place = next(iter(shown()))
    beside = shown(sample_prediction(target=Target(*place, 1e13)))
    assert len(beside) > 3 and all(shown().values())
    assert [at for at, visible in beside.items() if not visible] == [place]


def test_known_entropy_is_shown_beside_the_fit():
    sample = sample_analysis(
        entropy=EntropyCheck(0.92, Parameter("E", 0.9, estimate(0.9, 0.1), False), "separable")
    )
    tables = tables_of(sample)
    assert tables["Irreducible loss beside the truth"].rows == (("separable", "0.92", "0.9", "[0.81, 0.99]"),)


def test_unbracketed_budgets_and_unsolved_parabolas_are_drawn_without_an_optimum(tmp_path):
    isoflops = sample_isoflops(sample_runs())
    open_end = dataclasses.replace(
        isoflops[0],
        bracketed=False,
        params_opt=None,
        tokens_opt=None,
        loss_min=None,
        reason="the smallest size is the best",
    )
    unsolved = dataclasses.replace(open_end, coefficients=(np.nan,) * 3)
    sample = sample_analysis(isoflops=(open_end, unsolved, *isoflops[2:]))
    page = write_report(sample, tmp_path).read_text()
    assert (
        "3 of 5 budgets" in page
        and "the smallest size is the best" in page
        and page.count("not bracketed") >= 2
    )


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (words.count(3.12e6), "3.12M"),
        (words.count(999_999), "1.00M"),
        (words.count(2.6e12), "2.60T"),
        (words.count(356_000), "356k"),
        (words.count(42), "42"),
        (words.count(3e15), "3.0e15"),
        (words.count(None), "–"),
        (words.interval(-9.881e-14, 2.5), "[0, 2.5]"),
        (words.interval(-1e-3, 2.5), "[-0.001, 2.5]"),
        (words.flops(1.2e12), "1.2e12"),
        (words.flops(9.96e12), "1.0e13"),
        (words.loss_with_error(2.10341, 0.00124), "2.1034 ± 0.0012"),
        (words.loss_with_error(2.1, None), "2.1000"),
        (words.loss_with_error(float("nan"), 0.1), "–"),
        (words.loss(1.5), "1.5000"),
        (words.percent(0.9961, signed=True), "+1.0%"),
        (words.percent(-0.25), "-0.25%"),
        (words.percent(-0.001, signed=True), "+0.00%"),
        (words.factor(10.0), "10×"),
        (words.factor(2.0), "2×"),
        (words.factor(2.54), "2.5×"),
        (words.number(477.83), "477.8"),
        (words.number(381000.0), "3.810e5"),
        (words.number(21434.0), "21434"),
        (words.number(5e-4), "5.000e-4"),
        (words.number(0.0), "0"),
        (words.duration(41.4), "41 s"),
        (words.duration(59.7), "1 min 0 s"),
        (words.duration(7500), "2 h 5 min"),
        (words.duration(4 * 86400), "4 d 0 h"),
        (words.power_of_ten(1e12), "10¹²"),
        (words.tick_count(1e4), "10k"),
        (words.parameters("total"), "total parameters"),
        (words.parameters("column n"), "parameters (column n)"),
        (words.tick_count(2.5e6), "2.5M"),
        (words.tick_count(200.0), "200"),
        (words.moment("2026-11-23T10:00:59+00:00"), "2026-11-23 10:00"),
        (words.power_of_ten(2e-3), "2·10⁻³"),
        (words.plural(1, "run"), "1 run"),
        (words.listing(["a.", " b"]), "a; b"),
    ],
)
def test_numbers_in_words(said, wanted):
    assert said == wanted


@pytest.mark.parametrize("n", [1, 2, 5, theme.STEPS, 30])
def test_sequential_colours_are_ordered_by_lightness(n):
    def lightness(colour: str) -> float:
        red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    scale = [lightness(colour) for colour in theme.sequential(n)]
    assert len(scale) == n and scale == sorted(scale)
    assert len(set(scale)) == min(n, theme.STEPS)
