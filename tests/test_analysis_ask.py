"""What follows from a law, and the command line that asks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from analysis_helpers import optimal_params, sweep, target

from analysis import answers, store, tradeoffs
from analysis.ask import QUESTIONS, main, respond
from analysis.fitted import read_laws
from analysis.hardware import ACCELERATORS, Machine
from analysis.known import Known, NoAnswer, Surface
from analysis.prediction import model, predict
from analysis.published import LAWS
from analysis.study import study
from analysis.table import Table
from analysis.units import count, days, parse, power

ROOT = Path(__file__).resolve().parents[1]
SURFACE = Surface(E=1.7, A=400.0, B=900.0, a=0.34, b=0.31)
LAW = Known(
    name="planted",
    equation="",
    source="",
    counts="",
    corpus="",
    interval="none",
    constants={},
    loss=SURFACE.loss,
    irreducible=SURFACE.E,
)


# --- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, value",
    [
        ("10B", 10e9),
        ("1.4T", 1.4e12),
        ("5.76e23", 5.76e23),
        ("70e9", 70e9),
        ("350m", 350e6),
        ("1_000k", 1e6),
        ("40%", 0.4),
        (".5", 0.5),
    ],
)
def test_numbers_as_people_write_them(text, value):
    assert parse(text) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["", "0", "-5", "ten", "1.2.3", "10X", "nan", "inf", "1e999", "B"])
def test_what_is_no_positive_number_is_refused(text):
    with pytest.raises(ValueError, match="positive number"):
        parse(text)


def test_numbers_are_shown_in_three_digits():
    assert [count(x) for x in (5, 999.6, 67e9, 205.1e9, 999.9e9, 1.5e12, 1.43e15)] == [
        *("5", "1k", "67B", "205B", "1T", "1.5T", "1.43e15")
    ]
    assert [power(x) for x in (5.76e23, 1e21, 0.5, 1.2e-5)] == ["5.76e23", "1e21", "0.5", "1.2e-5"]
    assert [days(x) for x in (0.01, 1.5, 38, 1234.5)] == ["14.4 minutes", "36 hours", "38 days", "1,234 days"]


# --- optima ---------------------------------------------------------------------------------------


def test_the_optimum_is_hoffmanns_closed_form():
    # Hoffmann et al. 2022 (arXiv 2203.15556), equation 4
    C, s = 1e22, SURFACE
    G = (s.a * s.A / (s.b * s.B)) ** (1 / (s.a + s.b))
    plan = LAW.optimum(C, 6)
    assert plan.params == pytest.approx(G * (C / 6) ** (s.b / (s.a + s.b)), rel=1e-6)
    assert plan.tokens == pytest.approx((C / 6) ** (s.a / (s.a + s.b)) / G, rel=1e-6)
    assert LAW.for_params(plan.params, 6).flops == pytest.approx(C, rel=1e-5)
    assert LAW.for_tokens(plan.tokens, 6).flops == pytest.approx(C, rel=1e-5)


def test_the_coupling_moves_the_loss_and_not_the_optimum():
    coupled = replace(LAW, loss=replace(SURFACE, k=0.6).loss)
    assert coupled.optimum(1e21, 6).params == pytest.approx(LAW.optimum(1e21, 6).params, rel=1e-6)
    assert coupled.optimum(1e21, 6).loss != pytest.approx(LAW.optimum(1e21, 6).loss, rel=0.01)


def test_what_a_flop_costs_moves_the_budget_and_not_the_pairs_of_n_and_d():
    dear, cheap = LAW.for_params(1e9, 9), LAW.for_params(1e9, 6)
    assert dear.tokens == pytest.approx(cheap.tokens, rel=1e-5)
    assert dear.flops == pytest.approx(1.5 * cheap.flops, rel=1e-5)


def test_tokens_for_a_loss_invert_the_law():
    sizes = np.array([1e8, 1e9, 1e10])
    loss = LAW.loss_at(1e9, 5e10)
    tokens = LAW.tokens_for_loss(sizes, loss)
    assert tokens[0] == np.inf or SURFACE.loss(sizes[0], tokens[0], tokens[0]) == pytest.approx(loss)
    assert tokens[1] == pytest.approx(5e10, rel=1e-6)
    assert tokens[2] < tokens[1]
    assert LAW.tokens_for_loss(1e6, loss) == np.inf  # E + A/N^a alone is above it


def test_serving_nothing_is_training_alone_and_serving_more_makes_it_smaller():
    plan = LAW.optimum(1e22, 6)
    served = [LAW.cheapest(plan.loss, 6, amount) for amount in (0.0, 1e11, 1e12, 1e13)]
    assert served[0].params == pytest.approx(plan.params, rel=1e-4)
    assert served[0].flops == pytest.approx(plan.flops, rel=1e-6)
    sizes = [best.params for best in served]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] > 2 * sizes[-1]
    for best, amount in zip(served, (0.0, 1e11, 1e12, 1e13), strict=True):
        assert SURFACE.loss(best.params, best.tokens, best.tokens) == pytest.approx(plan.loss, rel=1e-9)
        around = np.array([0.97, 1.03]) * best.params
        others = 6 * around * LAW.tokens_for_loss(around, plan.loss) + 2 * around * amount
        assert (others > best.flops + 2 * best.params * amount).all()


def test_a_law_without_an_optimum_says_so():
    flat = replace(LAW, loss=lambda N, D, U: 3 - 0.01 * np.log(N))
    with pytest.raises(NoAnswer, match="no optimum"):
        flat.optimum(1e20, 6)
    with pytest.raises(NoAnswer, match="reaches no such loss"):
        LAW.cheapest(1.69, 6, 1e12)  # below E


# --- answers --------------------------------------------------------------------------------------


def test_llama_65b():
    # Touvron et al. 2023 (arXiv 2302.13971): 65.2B parameters, 1.4T tokens. By 6·N·D they are 5.46e23 FLOPs,
    # which 1,024 A100s at 0.55 of 312 TFLOP/s do in 36.0 days. "About 38 days" counts attention too: its
    # 12·L·d·T FLOPs a token (80 layers, width 8,192, context 2,048) add 4%, which makes 37.4.
    machine = Machine(ACCELERATORS["a100"], 1024, 0.55, None)
    assert machine.days(6 * 65e9 * 1.4e12) == pytest.approx(35.97, abs=0.01)
    attention = 12 * 80 * 8192 * 2048 * 1.4e12
    assert machine.days(6 * 65.2e9 * 1.4e12 + attention) == pytest.approx(38, abs=0.6)
    said = respond(["time", "params=65B", "tokens=1.4T", "gpus=1024", "gpu=a100", "mfu=0.55"])
    assert "take 36 days" in said and "attention, left out" in said
    # Section 2.4 of that paper: 380 tokens a second and GPU on 2,048 A100s, approximately 21 days.
    reached = 380 * 6 * 65e9 / 312e12
    assert Machine(ACCELERATORS["a100"], 2048, reached, None).days(6 * 65e9 * 1.4e12) == pytest.approx(
        21, abs=0.3
    )


def test_a_machine_is_the_budget_that_it_computes():
    machine = Machine(ACCELERATORS["h200"], 8, 0.4, 3.0)
    flops = 8 * 989e12 * 0.4 * 10 * 86400
    assert machine.flops(10) == pytest.approx(flops)
    by_machine = answers.budget(LAW, cost=6, machine=machine, duration=10)
    by_flops = answers.budget(LAW, cost=6, flops=flops)
    assert dict(by_machine.runs) == pytest.approx(dict(by_flops.runs))
    assert "1,920 accelerator hours over 10 days, at 3 an hour: 5,760" in by_machine.says[1]


def test_a_machine_without_days_is_tabled_over_durations():
    answer = answers.budget(LAW, cost=6, machine=Machine(ACCELERATORS["a100"], 100, 0.4, 2.0))
    assert [row[0] for row in answer.table[1:]] == ["24 hours", "7 days", "30 days", "90 days", "365 days"]
    losses = [float(row[5]) for row in answer.table[1:]]
    assert losses == sorted(losses, reverse=True)
    assert answer.table[3][-1] == "144,000"  # 100 x 30 x 24 hours at 2


@pytest.mark.parametrize("given", [{}, {"flops": 1e20, "duration": 3.0}, {"duration": 3.0}])
def test_a_budget_that_is_none_or_two(given):
    with pytest.raises(NoAnswer, match="a budget is"):
        answers.budget(LAW, cost=6, **given)


def test_limited_tokens_make_a_smaller_model_that_sees_them_again():
    law = LAWS["muennighoff"]
    plenty = answers.budget(law, cost=6, flops=1e21)
    limited = answers.budget(law, cost=6, flops=1e21, unique=dict(plenty.runs)["tokens"] / 5)
    assert dict(limited.runs)["params"] < dict(plenty.runs)["params"]
    assert "passes over" in limited.says[1]


def test_repeats_by_a_law_that_knows_none_take_muennighoffs_constant_and_say_so():
    answer = answers.loss(LAW, cost=6, params=1e9, tokens=4e10, unique=1e10)
    worth_of_four = 1e10 * (1 + 15.387756 * (1 - np.exp(-3 / 15.387756)))
    assert f"loss {LAW.loss_at(1e9, worth_of_four):.4f}" in answer.says[0]
    assert any("2305.16264" in line for line in answer.assumes)


def test_transfer_needs_no_anchor_where_the_law_is_right():
    loss = LAW.loss_at(1e10, 2e11)
    answer = tradeoffs.transfer(LAW, params=1e10, tokens=2e11, loss=loss, to=1e11, cost=6)
    for row in answer.table[1:]:
        assert row[4] == row[5] == row[6]
    assert answer.table[1][:2] == ("the same tokens", "200B")
    assert float(answer.table[1][4]) == pytest.approx(LAW.loss_at(1e11, 2e11), abs=5e-5)


def test_transfer_keeps_what_each_anchor_keeps():
    said, loss = LAW.loss_at(1e10, 2e11), 2.0
    row = tradeoffs.transfer(LAW, params=1e10, tokens=2e11, loss=loss, to=1e11, cost=6).table[1]
    other = LAW.loss_at(1e11, 2e11)
    expected = (other * loss / said, other + loss - said, 1.7 + (other - 1.7) * (loss - 1.7) / (said - 1.7))
    assert [float(cell) for cell in row[4:]] == pytest.approx(expected, abs=5e-5)
    # a loss below E leaves nothing to scale, which is said
    below = tradeoffs.transfer(LAW, params=1e10, tokens=2e11, loss=1.5, to=1e11, cost=6)
    assert len(below.table[0]) == 6 and any("cannot be scaled" in line for line in below.assumes)


def test_transfer_to_a_wanted_loss():
    loss = LAW.loss_at(1e10, 2e11)
    wanted = LAW.loss_at(1e11, 3e12)
    answer = tradeoffs.transfer(LAW, params=1e10, tokens=2e11, loss=loss, to=1e11, cost=6, wanted=wanted)
    assert answer.table[-1][1] == "3T"
    never = tradeoffs.transfer(LAW, params=1e10, tokens=2e11, loss=loss, to=1e11, cost=6, wanted=1.71)
    assert "No number of tokens" in never.says[-1]


def test_serving_table_holds_runs_of_equal_loss():
    answer = tradeoffs.serve(LAW, served=2e12, params=1.3e10, cost=6)
    marks = [row[-1] for row in answer.table]
    assert marks.count("least training") == marks.count("least in all") == 1
    losses = [LAW.loss_at(parse(row[0]), parse(row[1])) for row in answer.table[1:]]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-3)  # three digits of N and D
    yours = tradeoffs.serve(LAW, served=2e12, params=1.3e10, tokens=3e12, cost=6)
    assert "yours" in [row[-1] for row in yours.table]


@pytest.mark.parametrize("given", [{}, {"params": 1e9, "loss": 2.5}, {"tokens": 1e9, "loss": 2.5}])
def test_serving_keeps_one_quality(given):
    with pytest.raises(NoAnswer, match="the quality to keep"):
        tradeoffs.serve(LAW, served=1e12, cost=6, **given)


def test_repeating_once_changes_nothing_and_a_decade_is_ten_times_the_tokens():
    law = LAWS["muennighoff"]
    answer = tradeoffs.repeat(law, unique=1e11, epochs=4, cost=6, params=5e9)
    once = answer.table[1]
    assert once[:3] == ("1", "1", "100%")
    assert float(once[3]) == pytest.approx(law.loss_at(5e9, 1e11), abs=5e-5)
    assert float(once[4]) == pytest.approx(law.loss_at(5e9, 1e12), abs=5e-5)
    four = next(row for row in answer.table if row[0] == "4")
    assert float(four[3]) == pytest.approx(law.loss_at(5e9, 4e11, 1e11), abs=5e-5)
    assert float(once[4]) < float(four[3]) < float(once[3])


def test_what_lies_outside_the_fitted_runs_is_said():
    law = LAWS["besiroglu"]
    assert answers.outside(law, (("params", 1e10), ("tokens", 2e11), ("flops", 1.2e22))) == ()
    far = answers.outside(law, (("params", 1.62e12), ("tokens", 8.2e6)))
    assert far == (
        "N = 1.62T is 100 times the largest fitted (16.2B)",
        "D = 8.2M is 100 times below the smallest fitted (820M)",
    )


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_every_example_is_answered(question):
    said = respond([question.name, *question.example.split()])
    assert all(len(line) <= 100 for line in said.splitlines())
    assert "Assuming" in said or question.name == "loss"
    if question.law:
        assert re.search(rf"^Law +{question.default} \(the default", said, re.MULTILINE)
        assert re.search(r"^Source +.*arXiv", said, re.MULTILINE)
        assert re.search(r"^Interval +none", said, re.MULTILINE)


def test_the_answer_comes_first_and_the_other_laws_beside_it():
    said = respond(["tokens", "params=10B"])
    assert said.startswith("A model of 10B parameters needs at least 203B tokens (20.3 a parameter")
    assert re.search(r"hoffmann-1 +10B +205B", said)
    assert "other published laws" not in respond(["tokens", "params=10B", "law=hoffmann-1"])
    assert "needs at least 205B tokens" in respond(["tokens", "params=10B", "law=hoffmann-1"])


def test_growth_is_printed():
    assert "5.4x the parameters, 1.9x the tokens" in respond(["budget", "flops=1e20", "law=kaplan"])
    assert "3.2x the parameters, 3.2x the tokens" in respond(["budget", "flops=1e20", "law=hoffmann-1"])


def test_a_warning_only_outside_of_the_fitted_range():
    assert "Warning" not in respond(["tokens", "params=5B"])
    assert "Warning   extrapolation: N = 1T is 61.7 times the largest fitted" in respond(
        ["tokens", "params=1T"]
    )


def test_limits_of_kaplans_law():
    assert "loss 2.9755" in respond(["loss", "params=51.7M", "law=kaplan-nd"])  # (8.8e13/51.7e6)^0.076
    assert "everything else unbounded" in respond(["loss", "tokens=1B", "law=kaplan-nd"])
    with pytest.raises(NoAnswer, match="also takes params= or tokens= alone"):
        respond(["loss", "law=kaplan-nd"])


def test_lists():
    said = respond(["laws"])
    assert all(f"Law       {name}\n" in said for name in LAWS)
    assert all(name in respond(["gpus"]) for name in ACCELERATORS)
    usage = respond([])
    assert usage == respond(["--help"]) and all(name in usage for name in QUESTIONS)


@pytest.mark.parametrize(
    "words, message",
    [
        ("tokns params=1B", r"no question 'tokns'. Did you mean tokens\? There are: tokens, params, budget"),
        ("tokens", r"question 'tokens' needs params= \(N, parameters\); for example: tokens params=10B"),
        ("tokens params=1B law=hofman-1", "no published law 'hofman-1'. Did you mean hoffmann-1"),
        ("tokens params=1B model=x", "no key 'model'. There are: params, cost, law, fits"),
        ("tokens params", "'params' is not key=value"),
        ("tokens params=1B params=2B", "params= is given twice: 1B and 2B"),
        ("tokens params=0", "params=0: '0' is not a positive number"),
        ("tokens params=-1e9", "'-1e9' is not a positive number"),
        ("budget gpus=8 gpu=h1000 days=1", "no gpu 'h1000'. Did you mean h100"),
        ("budget gpus=8 days=1", "a machine is gpus=NUMBER and gpu=NAME"),
        ("budget gpus=8 gpu=h100 days=1 mfu=40", "mfu=40: a share of the peak"),
        ("budget", "a budget is flops="),
        (
            "budget flops=1e22 unique=1B law=hoffmann-1",
            "does not say what repeated tokens and parameters in excess",
        ),
        ("tokens params=1B law=hoffmann-1 cost=7", "cost= cannot change"),
        ("tokens params=1B law=kaplan-nd", "cannot say what a run costs"),
        ("loss params=1B tokens=1B law=hoffmann-2", "not what loss a run reaches"),
        ("loss flops=1e20 unique=1B", "unique= goes with"),
        ("loss params=1B", "give params= and tokens=, or flops= alone"),
        ("repeat unique=1B epochs=0.5", "epochs=0.5: one pass at least"),
        ("tokens params=1B fits=nowhere", "fits=nowhere: no such file"),
        ("gpus all", "'all' is not key=value"),
    ],
)
def test_mistakes_are_named_with_what_there_is(words, message, capsys):
    assert main(words.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("ask: ") and re.search(message, said.err)


def test_the_readme_shows_what_is_printed():
    shown = re.findall(
        r"^    \$ python -m analysis\.ask (.*)\n((?:    \S.*\n)+)",
        (ROOT / "README.md").read_text(),
        re.MULTILINE,
    )
    assert len(shown) >= 7
    for command, printed in shown:
        assert respond(command.split()).startswith(re.sub(r"^    ", "", printed, flags=re.MULTILINE).rstrip())


def test_it_starts_at_once():
    """Neither SciPy nor what draws or composes is loaded to answer."""
    program = (
        "import sys; from analysis.ask import main; main(['tokens', 'params=10B']);"
        "print(*sys.modules, file=sys.stderr)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )
    loaded = {name.partition(".")[0] for name in found.stderr.split()}
    assert "numpy" in loaded
    assert loaded & {"scipy", "matplotlib", "hydra", "omegaconf", "torch"} == set()


# --- a law fitted here ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    """fits.json and predictions.json of a synthetic sweep, as the analysis writes them."""
    folder = tmp_path_factory.mktemp("report")
    runs = sweep(noise=0.002)
    known = model(runs, resamples=60)
    made = predict(known, target(), "digest")
    table = Table(
        path=folder / "runs.csv",
        runs=runs,
        rows=(),
        exclusions=(),
        holdouts=(),
        columns={},
        params_kind="non-embedding",
        flops_kind="6·N·D",
        notes=(),
        digest="digest",
    )
    store.write_fits(folder / "fits.json", study(table, known, (made,), {}, title="synthetic"))
    store.write_predictions(folder / "predictions.json", (made,))
    return folder


def test_a_fitted_law_finds_the_true_optimum(report):
    laws = read_laws(report)
    assert next(iter(laws)) == "shrunk"  # the one that predicts comes first
    assert {"separable", "coupled", "approach-2", "approach-3"} <= set(laws)
    for name in ("shrunk", "approach-2", "approach-3"):
        assert laws[name].optimum(1e12, 6).params == pytest.approx(optimal_params(1e12), rel=0.15)
    assert laws["shrunk"].fitted["flops"] == pytest.approx((1e11, 1e12))


def test_the_interval_is_that_of_the_analysis(report):
    made = store.read_predictions(report / "predictions.json")[0]
    said = respond(["budget", f"fits={report}", "flops=1e13"])
    lo, hi = map(float, re.search(r"loss (\d\.\d+) to (\d\.\d+) for 90% of new runs", said).groups())
    assert (lo, hi) == pytest.approx((made.lo90, made.hi90), abs=2e-3)  # the target is the optimum at 1e13
    run = [f"params={made.target.params!r}", f"tokens={made.target.tokens!r}"]
    assert f"{made.lo90:.4f} to {made.hi90:.4f} for 90%" in respond(
        ["loss", f"fits={report / 'fits.json'}", *run]
    )
    far = " ".join(respond(["budget", f"fits={report}", "flops=1e20"]).split())
    assert "for the loss none: 1e20 FLOPs are beyond what the analysis looked at" in far
    assert "the other published laws" not in far


def test_another_count_of_flops_is_pointed_out(report, tmp_path):
    content = json.loads((report / "fits.json").read_text())
    content["frontier"]["flops"] = [1.25 * flops for flops in content["frontier"]["flops"]]
    (tmp_path / "fits.json").write_text(json.dumps(content))
    said = respond(["budget", f"fits={tmp_path}", "flops=1e12"])
    assert "FLOPs are 7.5·N·D at such a budget: cost=7.5 counts as they do" in " ".join(said.split())
    assert "counts as they do" not in respond(["budget", f"fits={tmp_path}", "flops=1e12", "cost=7.5"])


def test_an_analysis_that_is_not_supported_is_a_warning(report, tmp_path):
    content = json.loads((report / "fits.json").read_text()) | {
        "verdict": "not supported",
        "reasons": ["too far"],
    }
    (tmp_path / "fits.json").write_text(json.dumps(content))
    said = respond(["budget", f"fits={tmp_path}", "flops=1e12"])
    assert "Warning   the analysis calls its extrapolation not supported: too far" in said


def test_reports_of_an_older_kind_and_files_of_another(report, tmp_path):
    content = json.loads((report / "fits.json").read_text())
    del content["frontier"], content["range"]
    (tmp_path / "fits.json").write_text(json.dumps(content))
    said = respond(["budget", f"fits={tmp_path}", "flops=1e13"])
    assert "for N and D none" in said
    (tmp_path / "fits.json").write_text("{}")
    with pytest.raises(ValueError, match="is not the fits.json of an analysis"):
        read_laws(tmp_path)
    with pytest.raises(ValueError, match="no law in .* 'nosuch'.*There are: shrunk"):
        respond(["tokens", "params=1M", f"fits={report}", "law=nosuch"])
