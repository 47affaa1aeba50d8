"""Whole sweeps, through the command line, on a small corpus."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TIMES = {"wall_seconds", "tokens_per_second"}
SMALL = [
    "scale=cpu", "+grid=isoflop", "logger=none", "data=text", "data.heldout_fraction=0.2", "data.eval_tokens=4096",
    "model.seq_len=32", "grid.budgets=[1e9,2e9,4e9]", "grid.sizes_per_budget=3", "grid.size_ratio=2.2",
    "grid.optimum_params=4e3", "grid.optimum_at_flops=1e9", "grid.extensions=1", "data.max_epochs=20",
    "optim.batch_tokens=128", "optim.batch_exponent=0", "executor.evaluations=0", "schedule.warmup_tokens=null", "schedule.warmup_fraction=0.03",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Eighty documents of English-like sentences, none a near-copy of another."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    subjects, verbs, objects = (
        ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 8))) for _ in range(60)] for _ in range(3)
    )
    for number in range(80):
        lines = (
            f"the {draw.choice(subjects)} {draw.choice(verbs)}s a {draw.choice(objects)}." for _ in range(60)
        )
        (folder / f"{number:03}.txt").write_text("\n".join(lines))
    return folder


def command(corpus: Path, cache: Path, out: Path, *more: str) -> list[str]:
    data = [f"data.path={corpus}", f"data.cache={cache}", f"out={out}"]
    return [sys.executable, "-m", "sweep", *SMALL, *data, *more]


def sweep(*arguments, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env=environment, timeout=300, **options
    )


def rows(out: Path) -> list[dict[str, str]]:
    """runs.csv without its times."""
    with open(out / "runs.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def undisturbed(corpus, cache, tmp_path_factory) -> tuple[Path, Path, subprocess.CompletedProcess]:
    out = tmp_path_factory.mktemp("sweeps") / "undisturbed"
    return out, cache, sweep(corpus, cache, out)


def test_one_command_trains_predicts_and_scores(undisturbed):
    out, _, done = undisturbed
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("scale=cpu (asked for)")
    finished = rows(out)
    assert {row["status"] for row in finished} == {"finished"}
    assert [row["role"] for row in finished].count("holdout") == 1 and finished[-1]["role"] == "holdout"
    plan = json.loads((out / "plan.json").read_text())
    assert [row["run_id"] for row in finished] == [run["run_id"] for run in plan["runs"]]
    (prediction,) = json.loads((out / "report" / "predictions.json").read_text())
    target = finished[-1]
    assert prediction["target"]["params"] == float(target["params_non_embedding"])
    assert prediction["target"]["flops"] == pytest.approx(4e10, rel=0.02)
    measured = prediction["measured"]
    assert measured["loss"] == float(target["loss"])
    error = 100 * (prediction["loss"] / measured["loss"] - 1)
    assert measured["error_pct"] == pytest.approx(error, rel=1e-6, abs=1e-9)
    assert measured["inside"] == (prediction["lo90"] <= measured["loss"] <= prediction["hi90"])
    assert (out / "report" / "index.html").stat().st_size > 10_000


def test_budgets_are_met_in_exact_flops(undisturbed):
    out, _, _ = undisturbed
    for row in rows(out):
        if row["role"] == "fit":
            budget = float(row["group"].removeprefix("C="))
            steps = float(row["tokens"]) / float(row["batch_tokens"])
            assert float(row["flops"]) == pytest.approx(budget, rel=0.5 / steps + 1e-9)


def test_prediction_is_written_before_its_target_is_trained(undisturbed):
    out, _, _ = undisturbed
    written = json.loads((out / "report" / "predictions.json").read_text())[0]["created"]
    target = json.loads((out / "plan.json").read_text())["runs"][-1]["run_id"]
    started = (out / "runs" / target / "spec.json").stat().st_mtime
    assert time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(started)) >= written[:19]


def test_the_same_command_again_trains_nothing(corpus, undisturbed):
    out, cache, _ = undisturbed
    before = rows(out), (out / "report" / "predictions.json").read_text()
    again = sweep(corpus, cache, out)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "; 0 trained by this command" in again.stdout
    assert (rows(out), (out / "report" / "predictions.json").read_text()) == before


def test_another_recipe_is_refused_in_the_same_folder(corpus, undisturbed):
    out, cache, _ = undisturbed
    before = rows(out)
    refused = sweep(corpus, cache, out, "optim.lr=0.02")
    assert refused.returncode == 2
    assert "belongs to another sweep" in refused.stderr and "optim.lr: 0.004 there, 0.02 asked for" in refused.stderr
    assert rows(out) == before


def test_killed_at_random_moments_it_ends_as_if_undisturbed(corpus, undisturbed, tmp_path):
    """SIGKILL to the coordinator, to workers, or to both, at seeded random moments."""
    reference, cache, _ = undisturbed
    out = tmp_path / "killed"
    draw, killed = random.Random(7), 0
    for _ in range(4):
        process = subprocess.Popen(
            command(corpus, cache, out, "executor.checkpoint_seconds=0.2"),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        awaited(lambda: workers(out) or process.poll() is not None)
        time.sleep(draw.uniform(0, 1.5))  # of the four seconds that the whole takes on two cores
        awaited(lambda: workers(out) or process.poll() is not None)
        victims = workers(out)
        if victims and (not killed or draw.random() < 0.7):
            with contextlib.suppress(ProcessLookupError):
                os.kill(draw.choice(victims), signal.SIGKILL)
                killed += 1
        if draw.random() < 0.7:
            process.kill()
        else:
            process.send_signal(signal.SIGINT)
        process.wait(60)
    ended = sweep(corpus, cache, out, "executor.checkpoint_seconds=0.2")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert killed and rows(out) == rows(reference)


def test_branches_are_the_runs_that_were_never_branched(corpus, undisturbed, tmp_path):
    """The whole sweep without trunks, each run by itself from its first update, has the same rows."""
    reference, cache, _ = undisturbed
    out = tmp_path / "independent"
    unbranched = [
        "schedule=independent", "optim.follows=size", "grid.target.flops=null", "optim.lr=0.004",
    ]  # fmt: skip
    assert sweep(corpus, cache, out, *unbranched).returncode == 0
    branched = [row | {"parent": ""} for row in rows(reference) if row["role"] == "fit"]
    assert rows(out) == branched and sum(row["role"] == "trunk" for row in rows(reference)) >= 3


def test_a_further_budget_extends_the_trunks_that_are_there(corpus, undisturbed, tmp_path):
    reference, cache, _ = undisturbed
    out = tmp_path / "grown"
    options = ["grid.target.flops=null", "grid.extensions=0", "grid.sizes=[3e3,6e3]"]
    sweep(corpus, cache, out, *options, "grid.budgets=[1e9,2e9]")  # four runs allow no fit
    before = {row["run_id"]: row for row in rows(out)}
    grown = sweep(corpus, cache, out, *options, "grid.budgets=[1e9,2e9,4e9]")
    assert "; 4 trained by this command" in grown.stdout, grown.stdout  # for each size a segment and a cooldown
    after = {row["run_id"]: row for row in rows(out)}
    assert {run_id: after[run_id] for run_id in before} == before
    parents = {row["parent"] for run_id, row in after.items() if run_id not in before and row["role"] == "trunk"}
    assert parents <= set(before) and len(parents) == 2


def awaited(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def workers(out: Path) -> list[int]:
    """Process ids of the workers of this sweep: what writes to their logs."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            written_to = os.readlink(process / "fd" / "1")
        except OSError:  # it has ended
            continue
        if written_to.startswith(str(out)) and written_to.endswith("worker.log"):
            found.append(int(process.name))
    return found


def test_plan_only_launches_nothing(corpus, cache, tmp_path):
    out = tmp_path / "planned"
    planned = sweep(corpus, cache, out, "plan_only=true")
    assert planned.returncode == 0, planned.stderr
    assert "plan_only=true: nothing was launched" in planned.stdout and "seconds" in planned.stdout
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["grid.budgets=[1e3]", "grid.sizes=[4e3]", "grid.target.flops=null"], ["less than one step", "C=1000", "Nothing was launched"]),
        (["max_hours=1e-6"], ["max_hours=1e-06", "Nothing was launched"]),
        (["data.max_epochs=0.01"], ["data.max_epochs=0.01", "tokens", "Nothing was launched"]),
        (["data.eval_tokens=100000000"], ["eval_tokens", "held-out", "Nothing was launched"]),
        (["grid.target.params=1e12"], ["grid.target.params", "Nothing was launched"]),
        (["grid.sizes=[1e10]", "grid.budgets=[1e20]", "schedule.warmup_fraction=0", "schedule.warmup_tokens=null"], ["need", "Nothing was launched"]),
        (["data.path=/no/such/place"], ["/no/such/place", "Nothing was launched"]),
        (["tokenizer=file", "tokenizer.path=/etc/hostname"], ["/etc/hostname", "Nothing was launched"]),
        (["device=cuda"], ["device", "Nothing was launched"]),
    ],
)
def test_bad_input_is_refused_with_a_clear_error(arguments, words, corpus, cache, tmp_path):
    out = tmp_path / "refused"
    refused = sweep(corpus, cache, out, *arguments)
    said = refused.stdout + refused.stderr
    assert refused.returncode == 2, said
    assert "Traceback" not in said
    for word in words:
        assert word in said, said
    assert not list(out.glob("runs/*"))


def test_a_folder_that_is_not_a_sweep_is_left_alone(corpus, cache, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    refused = sweep(corpus, cache, tmp_path / "mine")
    assert refused.returncode == 2 and "no sweep" in refused.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]
