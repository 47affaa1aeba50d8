"""The command line: what it prints, what it writes, how it refuses; the walls; the public tables."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from analysis_helpers import holdout_row, rows_of, sweep, target, true_loss, write_table
from omegaconf import OmegaConf

import analysis.__main__ as entry
from analysis.__main__ import CONF
from analysis.fitting import fit_law
from analysis.laws import SEPARABLE
from analysis.table import read_table

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SCALING_DATA", ROOT.parent / "shared" / "data"))


def run(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "analysis", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """One run on a table with a holdout and a failed row."""
    folder = tmp_path_factory.mktemp("cli")
    spot = target()
    rows = rows_of(sweep(0.003))
    rows[3] = {**rows[3], "status": "failed", "loss": ""}
    write_table(folder / "table.csv", [*rows, holdout_row(spot, float(true_loss(spot.params, spot.tokens)))])
    done = run("runs=table.csv", "columns.params=params_non_embedding", "out=report", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder, done


def test_it_says_first_what_it_will_do_and_last_where_the_result_is(result):
    folder, done = result
    lines = done.stdout.splitlines()
    assert lines[0].startswith(
        "table.csv: 31 rows, 29 to fit, 1 excluded, 1 held out (run_id=run_id, params=params_non"
    )
    assert lines[1].startswith("Now fitting")
    assert lines[-1] == "Report: report/index.html"
    assert "Traceback" not in done.stderr


def test_all_files_are_written(result):
    folder, _ = result
    (prediction,) = json.loads((folder / "report" / "predictions.json").read_text())
    assert prediction["measured"]["inside"]
    header, row = (folder / "report" / "predictions.csv").read_text().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["inside"] == "True"
    assert "r003,status is failed" in (folder / "report" / "exclusions.csv").read_text()
    assert json.loads((folder / "report" / "fits.json").read_text())["fits"]
    assert (folder / "report" / "index.html").stat().st_size > 10_000
    assert not (folder / "outputs").exists()  # hydra leaves nothing behind


def test_a_table_of_targets_is_predicted_by_the_laws_that_are_named(result, tmp_path):
    """One target by its tokens, one by its FLOPs; the holdout among them is predicted once."""
    folder, _ = result
    spot = target()
    rows = [f"{spot.params!r},{spot.tokens!r},", "60000,3e7,", "50000,,2e12"]
    (tmp_path / "wanted.csv").write_text("\n".join(["params,tokens,flops", *rows]) + "\n")
    done = run(
        f"runs={folder / 'table.csv'}",
        "columns.params=params_non_embedding",
        "targets=wanted.csv",
        "law=[shrunk,separable]",
        "out=report",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    predictions = json.loads((tmp_path / "report" / "predictions.json").read_text())
    assert [p["target"]["params"] for p in predictions] == [spot.params, 60000, 50000]
    assert predictions[1]["target"]["flops"] == pytest.approx(6 * 60000 * 3e7, rel=1e-6)
    assert predictions[2]["target"]["tokens"] == pytest.approx(2e12 / 6 / 50000, rel=1e-6)
    assert all(set(p["weights"]) == {"shrunk", "separable"} for p in predictions)
    assert (tmp_path / "report" / "backtest.csv").read_text().count("combined") > 5


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((), "give runs=PATH"),
        (("runs=table.csv", "out=o", "columns.params=params_non_embedding", "law=nosuch"), "no law 'nosuch'"),
        (("runs=table.csv", "out=o", "columns.params=params_non_embedding", "law=3"), "wanted auto, a law"),
        (("runs=table.csv", "out=o", "columns.params=params_non_embedding", "targets=no.csv"), "no table at no.csv"),
        (("runs=absent.csv", "out=o"), "no table at absent.csv"),
        (("runs=table.csv",), "give out=DIR"),
        (("runs=table.csv", "out=o", "columns.loss=nll"), "it has: run_id, group"),
        (
            ("runs=table.csv", "out=o", "target.params=1e5"),
            "target.params with target.tokens or target.flops",
        ),
        (("runs=table.csv", "out=o", "target.flops=-1"), "wanted a finite number above 0"),
        (
            ("runs=table.csv", "out=o", "target.params=1e5", "target.tokens=1e7", "target.flops=1e15"),
            "Leave one of the three out",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(result, arguments, said, monkeypatch):
    folder, _ = result
    monkeypatch.chdir(folder)
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("analysis", list(arguments)), resolve=True)
    with pytest.raises(ValueError, match=said):
        entry.run(entry.as_request(config))
    assert not (folder / "o").exists()


def test_a_refusal_is_one_line_and_exit_status_2(result):
    folder, _ = result
    done = run("runs=absent.csv", "out=o", cwd=folder)
    assert done.returncode == 2
    assert done.stderr.startswith("analysis: no table at absent.csv")
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout


def test_walls():
    """The analysis starts at once for people who never train: no torch, no sweep, no wandb."""
    allowed = {"hydra", "omegaconf"}
    for path in (ROOT / "analysis").rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module.split(".")[0])
        foreign = names - set(sys.stdlib_module_names) - {"analysis", "numpy", "scipy"}
        if path.name == "__main__.py":
            foreign -= allowed
        elif path.name == "table.py":
            foreign -= {"pyarrow"}  # within a function, where a Parquet file is read
        elif "report" in path.parts:
            foreign -= {"matplotlib", "cycler", "jinja2", "markupsafe"}
        assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


@pytest.mark.skipif(not (DATA / "chinchilla" / "runs.csv").exists(), reason=f"no public tables in {DATA}")
def test_the_chinchilla_points_have_their_known_optimum():
    table = read_table(DATA / "chinchilla" / "runs.csv", {"params": "n_params"})
    outliers = {
        line.split(",")[0]
        for line in (DATA / "chinchilla" / "runs.csv").read_text().splitlines()[1:]
        if line.endswith(",1")
    }
    kept = [i for i, run_id in enumerate(table.runs.run_id) if run_id not in outliers]
    fit, *_ = fit_law(SEPARABLE, table.runs.take(kept))
    assert fit.n == 240
    known = {"E": 1.81722, "A": 477.83, "B": 2143.42, "alpha": 0.347311, "beta": 0.367172}
    for name, value in known.items():
        assert fit.values[name] == pytest.approx(value, rel=1e-5), name
    assert fit.objective == pytest.approx(1.018274018e-3, rel=1e-8)
