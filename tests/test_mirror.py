from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
from execution_helpers import planned_run, put, result_of, wait_for
from fake_wandb_server import FakeWandbServer

from sweep.execute.ledger import Ledger
from sweep.execute.mirror import Mirror
from sweep.execute.wandb_mirror import Item, Memory, ended_items, is_reachable
from sweep.files import SweepFolder, write_atomically

KEY = "local-" + "5ec2e7" * 6 + "0000"
LINES = [
    {"step": 5, "tokens": 320, "flops": 1e6, "loss": 4.0, "lr": 0.01, "grad_norm": 1.0, "seconds": 0.1},
    {"step": 10, "tokens": 640, "flops": 2e6, "loss": 3.0, "lr": 0.01, "grad_norm": 1.0, "seconds": 0.2},
    {"step": 10, "tokens": 640, "flops": 2e6, "eval_loss": 3.1, "eval_loss_se": 0.02, "seconds": 0.2},
]

RECORDING = """
import json, os
from types import SimpleNamespace
Settings = dict
Image = Html = Table = lambda *arguments, **named: "shown"
def login(**named): return {logged_in}
def setup(): return SimpleNamespace(settings=SimpleNamespace(base_url={url!r}))
class Run:
    def __init__(self, name, mode): self.name, self.mode, self.summary = name, mode, {{}}
    def define_metric(self, *arguments, **named): pass
    def log(self, line): pass
    def finish(self, exit_code=0):
        with open({calls!r}, "a") as file: file.write(f"{{self.name}} {{self.mode}}\\n")
def init(name, mode, **named):
    {on_init}
    return Run(name, mode)
"""


@pytest.fixture(autouse=True)
def nobody_is_logged_in(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["NETRC"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


@pytest.fixture
def folder(tmp_path):
    """A sweep with a run that finished, one that failed, one still to do, and a report."""
    folder, runs = SweepFolder(tmp_path / "my sweep"), [planned_run(seed) for seed in range(3)]
    run = put(folder, runs[0], result_of(runs[0], loss=2.5))
    write_atomically(run.metrics, "".join(json.dumps(line) + "\n" for line in LINES) + '{"step": 11, "lo')
    put(folder, runs[1], result_of(runs[1], status="failed", loss=None, reason="ValueError: no such thing"))
    Ledger(folder, runs).write()
    write_atomically(folder.report / "index.html", "<h1>the report</h1>")
    return folder


@pytest.fixture
def fake_wandb(tmp_path, monkeypatch):
    """Put a module in wandb's place; returns what reads the runs that it was given."""

    def install(on_init="pass", logged_in=False, url="", source=None):
        modules, calls = tmp_path / "modules", tmp_path / "calls"
        text = RECORDING.format(on_init=on_init, logged_in=logged_in, url=url, calls=str(calls))
        write_atomically(modules / "wandb.py", text if source is None else source)
        monkeypatch.setenv("PYTHONPATH", str(modules))
        return lambda: calls.read_text().splitlines() if calls.exists() else []

    return install


@pytest.fixture
def server():
    server = FakeWandbServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def mirror(folder, logger="auto", **options):
    """What a whole mirror says."""
    said = []
    with Mirror(folder, logger, say=said.append, **{"patience_seconds": 60, **options}):
        pass
    return said


def name_of(seed):
    return planned_run(seed).run_id


def test_a_server_is_sent_each_ended_run_and_the_report(folder, server, monkeypatch):
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert mirror(folder, project="laws") == [f"wandb: online (at {server.url})"]
    by_name = {run["displayName"]: (run_id, run) for run_id, run in server.runs.items()}
    assert set(by_name) == {name_of(0), name_of(1), "report"}
    assert {run["groupName"] for _, run in by_name.values()} == {"my sweep"}
    assert {run["project"] for _, run in by_name.values()} == {"laws"}

    run_id, run = by_name[name_of(0)]
    planned = planned_run(0)
    config = {name: said["value"] for name, said in run["config"].items()}
    assert run["jobType"] == "train" and set(run["tags"]) == {"g", "fit", "finished"}
    assert (config["D"], config["C"], config["lr"]) == (planned.spec.tokens, planned.spec.flops, 0.01)
    assert config["N"] == 2 * (4 * 16**2 + 3 * 16 * 32 + 2 * 16 + 2 * 8) + 16 + 64 * 16
    assert config["spec"]["optim"]["weight_decay"] == 0
    assert config["_wandb"]["m"], "flops is everybody's axis"
    history = server.history[run_id]
    assert [line["flops"] for line in history] == [1e6, 2e6, 2e6]
    assert [line.get("train_loss") for line in history] == [4.0, 3.0, None]
    assert history[2]["eval_loss"] == 3.1
    assert server.summary[run_id]["loss"] == 2.5
    assert server.exit_code == {run_id: 0, by_name[name_of(1)][0]: 1, by_name["report"][0]: 0}
    assert by_name["report"][1]["jobType"] == "report"
    assert {"report", "runs"} <= set(server.history[by_name["report"][0]][0])
    assert not server.unknown

    for path in folder.path.rglob("*"):
        assert path.is_dir() or path.is_symlink() or KEY.encode() not in path.read_bytes(), path
    assert KEY not in json.dumps(server.runs)


def test_without_a_key_it_goes_offline_and_nothing_is_asked(folder):
    said = mirror(folder)
    assert said == ["wandb: offline (there is no API key)"]
    assert len(list(folder.wandb.glob("offline-run-*/*.wandb"))) == 3


def test_what_is_published_is_not_published_again_and_what_changed_is(folder, fake_wandb):
    calls = fake_wandb()
    mirror(folder)
    assert calls() == [f"{name_of(0)} offline", f"{name_of(1)} offline", "report offline"]
    mirror(folder)
    assert len(calls()) == 3
    runs = [planned_run(seed) for seed in range(3)]
    put(folder, runs[1], result_of(runs[1]))
    Ledger(folder, runs).write()
    mirror(folder)
    assert calls()[3:] == [f"{name_of(1)} offline"]


def test_runs_are_published_while_the_sweep_goes_on(folder, fake_wandb):
    calls = fake_wandb()
    with Mirror(folder, say=lambda line: None) as running:
        wait_for(lambda: len(calls()) == 2)
        assert running.messages() == ["wandb: offline (there is no API key)"]
        assert running.messages() == []
        assert not any("report" in call for call in calls()), "it may still change"
    assert calls()[-1] == "report offline"


@pytest.mark.parametrize("unreachable", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_with_a_key_and_no_server_it_goes_offline(folder, fake_wandb, unreachable):
    calls = fake_wandb(logged_in=True, url=unreachable)
    (said,) = mirror(folder)
    assert said.startswith(f"wandb: offline ({unreachable} does not answer")
    assert calls()[0] == f"{name_of(0)} offline"


def test_a_server_that_answers_with_an_error_is_there(server):
    assert is_reachable(server.url) and is_reachable(server.url + "/none")


def test_a_failure_online_is_one_line_and_goes_on_offline(folder, fake_wandb, server):
    refuse = "if mode == 'online': raise ValueError('no\\nsuch entity')"
    calls = fake_wandb(on_init=refuse, logged_in=True, url=server.url)
    said = mirror(folder)
    assert len(said) == 2 and "ValueError: no such entity); going on offline" in said[1]
    assert calls() == [f"{name_of(0)} offline", f"{name_of(1)} offline", "report offline"]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("raise ImportError('wandb is not installed')", "could not be mirrored (ImportError: wandb is"),
        ("import sys; sys.exit('goodbye')", "could not be mirrored (SystemExit: goodbye)"),
        ("import os; os._exit(11)", "the mirror is not complete, the results are"),
        ("import time; time.sleep(600)", "wandb: gave up after"),
    ],
)
def test_whatever_wandb_does_ends_in_words_and_in_time(folder, fake_wandb, source, complaint):
    fake_wandb(source=source)
    before = folder.runs_csv.read_bytes()
    said = mirror(folder, patience_seconds=2 if "sleep" in source else 60)
    assert any(complaint in line for line in said)
    assert "python -m sweep.execute.wandb_mirror" in said[-1]
    assert folder.runs_csv.read_bytes() == before


def test_the_command_completes_what_the_sweep_could_not(folder, fake_wandb):
    fake_wandb(source="raise ImportError")
    mirror(folder)
    calls = fake_wandb()
    command = [sys.executable, "-m", "sweep.execute.wandb_mirror", str(folder.path)]
    path = os.pathsep.join([os.environ["PYTHONPATH"], os.getcwd()])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "wandb: 3 runs were mirrored"
    assert len(calls()) == 3
    for options, published in (([], 0), (["--again"], 3)):
        command = [sys.executable, "-m", "sweep", "wandb", str(folder.path), *options]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
        assert done.returncode == 0 and f"{published} runs were mirrored" in done.stdout, done.stderr
    assert len(calls()) == 6


def test_with_all_online_wandb_is_not_even_imported(folder, fake_wandb, server):
    calls = fake_wandb(logged_in=True, url=server.url)
    mirror(folder)
    assert calls() == [f"{name_of(0)} online", f"{name_of(1)} online", "report online"]
    fake_wandb(source="raise ImportError")
    assert mirror(folder) == []


@pytest.mark.parametrize("how", ["logger", "environment"])
def test_none_starts_nothing_and_writes_nothing(folder, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mirror(folder, "none" if how == "logger" else "auto") == []
    assert not folder.wandb.exists()


def test_an_unknown_logger_is_refused(folder):
    with pytest.raises(ValueError, match="'tensorboard' is none of auto, wandb, none. Nothing was launched"):
        Mirror(folder, "tensorboard")


def test_what_went_offline_goes_online_once_it_can(tmp_path):
    memory, item = Memory(tmp_path / "mirrored.jsonl"), Item("a", "finished 1")
    memory.add(item, "offline")
    assert memory.has(item, online=False) and not memory.has(item, online=True)
    memory.add(item, "online")
    with open(tmp_path / "mirrored.jsonl", "a") as file:
        file.write('{"name": "a", "sta')
    again = Memory(tmp_path / "mirrored.jsonl")
    assert again.has(item, online=True)
    assert not again.has(Item("a", "finished 2"), online=False)


def test_an_id_made_of_digits_stays_text(folder):
    from sweep.execute.wandb_mirror import _value

    (row, *_) = [item.row for item in ended_items(folder, with_report=False)]
    for run_id in ("123456789012", "1234e5678901", "000000000000"):
        assert _value({**row, "run_id": run_id}, "run_id") == run_id
    assert _value(row, "d_model") == 16 and isinstance(_value(row, "d_model"), int)
    assert _value({**row, "lr": "1e-05"}, "lr") == 1e-5
    assert _value(row, "parent") is None
