"""Faults that no other module's tests plant: workers that hang, clocks that jump, folders that vanish, planted
ids and secrets, and code that changed."""

from __future__ import annotations

import ast
import csv
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from execution_helpers import FAKE_WORKER, acting, local, planned_run, starts, wait_for

from sweep import hardware, provenance, state
from sweep.execute import coordinator
from sweep.execute.coordinator import execute
from sweep.execute.lock import CoordinatorLock, is_held
from sweep.execute.progress import Progress
from sweep.execute.pulse import FIRST_SIGN, Pulse
from sweep.files import RunFolder, SweepFolder, read_json, write_json
from sweep.hardware import Hardware
from sweep.plan.schema import ConfigError
from sweep.plan.trunks import Shared
from sweep.train import out_of_memory
from sweep.train.train import Execution, train

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path):
    return SweepFolder(tmp_path / "sweep")


class Notes(Progress):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def run(folder, runs, *acts, seconds=0.0, slots=2, **options):
    return execute(folder, runs, local(slots), acting(*acts, seconds=seconds), poll_seconds=0.01, **options)


def statuses(folder):
    with open(folder.runs_csv, newline="") as file:
        return [line["status"] for line in csv.DictReader(file)]


# a worker that hangs


def test_a_worker_that_hangs_is_killed_and_its_run_goes_on_from_its_checkpoint(folder):
    runs, progress = [planned_run(0), planned_run(1)], Notes()
    outcomes = run(folder, runs, "hang_once", "succeed", hang_seconds=1.5, progress=progress)
    assert [(o.status, o.attempts) for o in outcomes] == [("finished", 2), ("finished", 1)]
    assert "no sign of life for 2 s and was killed); retry 1 of 2" in progress.notes[0]
    assert not is_held(folder.run(runs[0].run_id).lock)


def test_a_run_that_always_hangs_is_named_with_the_reason(folder):
    (outcome,) = run(folder, [planned_run()], "hang", hang_seconds=0.7, retries=1)
    assert (outcome.status, outcome.attempts) == ("failed", 2)
    assert "its worker died 2 times" in outcome.reason and "no sign of life" in outcome.reason


def test_a_slow_worker_that_moves_is_let_be(folder):
    """It takes twice as long as the silence that is allowed, in twenty steps."""
    (outcome,) = run(folder, [planned_run()], "succeed", seconds=5.0, hang_seconds=2.5)
    assert (outcome.status, outcome.attempts) == ("finished", 1)


def test_a_worker_that_hangs_and_has_lost_its_coordinator_is_killed_by_the_next(folder):
    """It does not notice that it is an orphan, so it would hold its run for ever."""
    planned = planned_run()
    run_folder = folder.run(planned.run_id)
    request = {"run_id": planned.run_id, "spec": planned.spec.to_json(), "execution": {"act": "hang", "seconds": 0}}
    write_json(run_folder.spec, request)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    orphan = subprocess.Popen([*FAKE_WORKER, str(run_folder.path)], env=environment, stdout=subprocess.DEVNULL)
    wait_for(run_folder.metrics.exists)
    progress = Notes()
    try:
        (outcome,) = run(folder, [planned], "succeed", hang_seconds=1.0, progress=progress)
        assert orphan.wait(10) == -signal.SIGKILL
    finally:
        orphan.kill()
    assert (outcome.status, outcome.attempts) == ("finished", 1)
    assert "still held" in progress.notes[0] and "gave no sign of life and was killed" in progress.notes[1]


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def watched(folder):
    """(clock, run's folder, pulse) of a run whose job waits in a queue."""
    clock, run_folder = Clock(), folder.run(planned_run().run_id)
    run_folder.path.mkdir(parents=True)
    return clock, run_folder, Pulse(run_folder, clock)


def test_the_time_in_a_queue_is_no_silence(watched):
    clock, run_folder, pulse = watched
    clock.now = 1e6
    assert pulse.silent_seconds() == 0
    with CoordinatorLock(run_folder.lock):
        assert pulse.silent_seconds() == 0
        clock.now += 90
        assert pulse.silent_seconds() == 90 / FIRST_SIGN
        run_folder.heartbeat.touch()
        assert pulse.silent_seconds() == 0
        clock.now += 90
        assert pulse.silent_seconds() == 90


def test_each_sign_ends_the_silence_whatever_time_its_file_bears(watched):
    clock, run_folder, pulse = watched
    for stamp in (1e9, 1e3, 4e9, 1e9):  # forwards and backwards by decades
        run_folder.heartbeat.touch()
        os.utime(run_folder.heartbeat, (stamp, stamp))
        assert pulse.silent_seconds() == 0
        clock.now += 50
        assert pulse.silent_seconds() == 50
    run_folder.metrics.write_text("{}")
    assert pulse.silent_seconds() == 0


def test_a_training_run_touches_its_heartbeat(tiny_spec, corpus, tmp_path):
    from sweep.train import train as module

    folder = RunFolder(tmp_path)
    execution = Execution("cpu", 1, str(corpus), 8, 1000, 0, 1e9, False)
    assert not folder.heartbeat.exists()
    train(tiny_spec(), execution, folder, lambda: False)
    assert folder.heartbeat.exists()
    beat = module.Heartbeat(tmp_path / "no such folder" / "heartbeat")
    beat()  # a folder that vanished is not its to report


# memory that runs out


@pytest.fixture
def starved(folder, tmp_path, monkeypatch):
    """starved(act, fits): the outcome and the last request of a run of 12 sequences on a machine whose kernel kills."""
    counts = tmp_path / "vmstat"
    counts.write_text("pgfault 17\noom_kill 3\n")
    monkeypatch.setattr(hardware, "KERNEL_COUNTS", counts)

    def starve(act, fits, **options):
        execution = {"act": act, "seconds": 0, "fits": fits, "counts": str(counts), "micro_batch_sequences": 12}
        planned = planned_run()
        (outcome,) = execute(folder, [planned], local(), lambda _: execution, poll_seconds=0.01, **options)
        return outcome, read_json(folder.run(planned.run_id).spec)["execution"]

    return starve


def test_a_worker_killed_for_want_of_memory_goes_on_with_half_the_micro_batch(starved):
    progress = Notes()
    outcome, asked = starved("outgrow_memory", fits=3, retries=0, progress=progress)
    assert (outcome.status, outcome.attempts) == ("finished", 3)
    assert (asked["micro_batch_sequences"], asked["oom_halvings"]) == (3, 2)
    assert [note.split("memory ran out; ")[1] for note in progress.notes] == [
        f"it goes on with {sequences} sequences at a time" for sequences in (6, 3)
    ]


def test_a_run_that_fits_in_no_memory_is_named_after_the_last_halving(starved):
    outcome, asked = starved("outgrow_memory", fits=0, retries=1)
    assert (outcome.status, outcome.attempts) == ("failed", 6)  # 12, 6, 3, 2, 1 and a retry of that
    assert asked["micro_batch_sequences"] == 1 and "killed by SIGKILL, out of memory" in outcome.reason
    assert coordinator.MOST_HALVINGS == out_of_memory.MOST_HALVINGS


def test_a_worker_that_somebody_killed_keeps_its_micro_batch(starved):
    outcome, asked = starved("die_once", fits=0)
    assert (outcome.status, outcome.attempts) == ("finished", 2)
    assert asked["micro_batch_sequences"] == 12 and "oom_halvings" not in asked


def test_what_the_kernel_of_this_machine_counts_is_read():
    if not hardware.KERNEL_COUNTS.exists():
        pytest.skip(f"{hardware.KERNEL_COUNTS} is Linux's")
    assert hardware.oom_kills() == int(re.search(r"^oom_kill (\d+)$", hardware.KERNEL_COUNTS.read_text(), re.M)[1])


# a clock that jumps


def test_a_clock_that_jumps_by_days_changes_nothing(folder, monkeypatch):
    jumps, real = iter([1e6, -1e6] * 10**6), time.time
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    outcomes = run(folder, [planned_run(0), planned_run(1)], "succeed", "die_once", seconds=1.0, hang_seconds=20)
    assert [(o.status, o.attempts) for o in outcomes] == [("finished", 1), ("finished", 2)]


def test_nothing_reads_a_clock_that_somebody_may_set():
    """time.time and datetime.now in what trains, executes and plans; strftime, for people, is let, and `sweep
    status`, which shows and decides nothing."""
    found = []
    shown = ROOT / "sweep/execute/status.py"
    for path in {*ROOT.glob("sweep/**/*.py"), *ROOT.glob("models/*.py")} - {shown}:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                if f"{node.value.id}.{node.attr}" in ("time.time", "datetime.now", "datetime.utcnow"):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert found == []


# folders and tables


def test_a_folder_that_vanishes_in_mid_run_is_made_again(folder):
    runs = [planned_run(0), planned_run(1)]

    def vanish():
        wait_for(lambda: all(folder.run(p.run_id).checkpoint.exists() for p in runs))
        shutil.rmtree(folder.path, ignore_errors=True)

    thread = threading.Thread(target=vanish)
    thread.start()
    outcomes = run(folder, runs, "succeed", seconds=3.0)
    thread.join()
    assert [o.status for o in outcomes] == ["finished"] * 2
    assert statuses(folder) == ["finished"] * 2
    assert all(read_json(folder.run(p.run_id).result)["status"] == "finished" for p in runs)


def test_a_folder_that_can_only_be_read_is_a_reason_and_no_endless_loop(folder, monkeypatch):
    def read_only(path, value, durable=True):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    progress = Notes()
    monkeypatch.setattr(coordinator, "write_json", read_only)
    (outcome,) = run(folder, [planned_run()], "succeed", progress=progress)
    assert outcome.status == "failed" and "Read-only file system" in outcome.reason
    assert any("cannot be written" in note and "not recorded" in note for note in progress.notes)


DAMAGED_TABLES = {
    "last line cut off": lambda table: table[:-30],
    "empty": lambda table: b"",
    "zeros": lambda table: bytes(len(table)),
    "another table": lambda table: b"a,b\n1,2\n",
}


@pytest.mark.parametrize("damage", DAMAGED_TABLES.values(), ids=DAMAGED_TABLES)
def test_a_damaged_table_is_made_again_and_no_run(damage, folder):
    runs = [planned_run(seed) for seed in range(2)]
    run(folder, runs, "succeed")
    whole = folder.runs_csv.read_bytes()
    folder.runs_csv.write_bytes(damage(whole))
    assert [o.attempts for o in run(folder, runs, "succeed")] == [0, 0]
    assert folder.runs_csv.read_bytes() == whole


def test_a_metrics_file_cut_off_leaves_the_run_to_its_end(folder):
    planned = planned_run()
    run_folder = folder.run(planned.run_id)
    run_folder.path.mkdir(parents=True)
    run_folder.metrics.write_text('{"step": 3, "tok')
    (outcome,) = run(folder, [planned], "succeed")
    assert outcome.status == "finished" and starts(run_folder) == 1


# ids and paths


@pytest.mark.parametrize(
    "planted", ["../../../etc", "/etc", "..", "", "0123456789a", "0123456789abc", "0123456789AB", "0123456789ab/", "0123456789a\n"]
)
def test_what_is_no_id_names_no_folder(planted, folder):
    for named in (folder.run, folder.run("0123456789ab").sibling):
        with pytest.raises(ValueError, match="no run's id.*nothing was read or written"):
            named(planted)
    assert folder.run("0123456789ab").sibling("ba9876543210").path == folder.path / "runs" / "ba9876543210"


def test_a_planted_parent_is_not_looked_at(tiny_spec, corpus, tmp_path):
    outside = tmp_path / "outside" / "checkpoint" / "state.pt"
    outside.parent.mkdir(parents=True)
    outside.write_bytes(b"planted")
    execution = Execution("cpu", 1, str(corpus), 8, 1, 0, 1e9, False, parent="../../outside")
    with pytest.raises(ValueError, match="'../../outside' is no run's id"):
        train(tiny_spec(), execution, SweepFolder(tmp_path / "sweep").run(tiny_spec().run_id), lambda: False)


@pytest.mark.parametrize("name", ["../elsewhere", "/etc", "..", ".", "a/b", "''"])
def test_a_name_that_would_leave_the_outputs_is_refused(name, compose):
    with pytest.raises(ConfigError, match="name: .* is no folder's name; say where .* with out="):
        compose("scale=cpu", "+grid=isoflop", f"name={name}")


# a change of the code


def test_a_change_of_the_code_is_told_and_kept(compose, folder, monkeypatch):
    config, corpus = compose("scale=cpu", "+grid=isoflop"), {"fingerprint": "f00d"}
    written = lambda: provenance.write_plan(folder, config, corpus, [planned_run()], [])  # noqa: E731
    assert provenance.changed_versions(folder) == []
    for code in ("aaaa", "bbbb", "bbbb", "cccc"):
        monkeypatch.setattr(provenance, "versions", lambda code=code: {"torch": "2.0", "code": code})
        written()
        assert provenance.changed_versions(folder) == []
    monkeypatch.setattr(provenance, "versions", lambda: {"torch": "2.1", "code": "cccc"})
    assert provenance.changed_versions(folder) == ["torch: 2.0 there, 2.1 here"]
    kept = read_json(folder.plan)
    assert [there["code"] for there in kept["earlier_versions"]] == ["aaaa", "bbbb"]
    assert kept["versions"]["code"] == "cccc" and kept["runs"][0]["run_id"] == planned_run().run_id


@pytest.fixture
def trained(compose, folder, monkeypatch):
    """trained(on_change): the sweep of a folder in which one run of two has been begun, with torch 2.0."""
    here = {"torch": "2.0", "code": "aaaa", "training_code": "f00d", "numpy": "1"}
    monkeypatch.setattr(provenance, "versions", lambda: dict(here))
    launched = []
    monkeypatch.setattr(state, "execute", lambda folder, runs, *rest, **options: launched.append(runs) or [])

    def sweep(on_change="refuse", **changes):
        here.update(changes)
        config = compose("scale=cpu", "device=cpu", "+grid=isoflop", f"on_change={on_change}")
        hardware = Hardware("cpu", 1, 10**9, "")
        runs = (planned_run(0), planned_run(1))
        return state.Sweep(config, folder, hardware, None, planned=Shared((), runs), facts={"fingerprint": "f"}), launched

    first, _ = sweep()
    first.write()
    write_json(folder.run(planned_run(0).run_id).spec, {})
    return sweep


@pytest.mark.parametrize("changes", [{"torch": "2.1"}, {"training_code": "beef"}])
def test_runs_are_not_trained_on_by_other_code_unless_that_is_accepted(trained, folder, changes):
    sweep, launched = trained(**changes)
    for _ in range(2):  # a refusal is not forgotten by the next command
        with pytest.raises(state.Refused, match=r"2\.1 here|beef here") as refusal:
            sweep.execute(sweep.runs, None)
        assert "on_change=accept" in str(refusal.value) and "Nothing was launched" in str(refusal.value)
    assert launched == []
    accepting, _ = trained("accept")
    assert provenance.changed_training(folder, sweep.runs) != []
    accepting.execute(accepting.runs, None)
    again, _ = trained("refuse")  # what was accepted once is what the folder's runs are trained with
    again.execute(again.runs, None)
    assert len(launched) == 2


def test_other_changes_and_plans_of_which_nothing_was_begun_are_let(trained, folder):
    sweep, launched = trained(code="bbbb", numpy="2")
    sweep.execute(sweep.runs, None)
    shutil.rmtree(folder.run(planned_run(0).run_id).path)
    sweep, _ = trained(training_code="beef")
    sweep.execute(sweep.runs, None)
    assert len(launched) == 2


def test_a_folder_of_an_older_version_is_no_change(trained, folder):
    plan = read_json(folder.plan)
    del plan["trained_with"], plan["versions"]["training_code"]
    write_json(folder.plan, plan)
    sweep, launched = trained()
    sweep.execute(sweep.runs, None)
    sweep, _ = trained(torch="2.1")
    with pytest.raises(state.Refused):
        sweep.execute(sweep.runs, None)
    assert len(launched) == 1


def test_comments_docstrings_and_layout_are_no_change_of_the_training_code(tmp_path, monkeypatch):
    digest = provenance.training_code.__wrapped__
    (tmp_path / "models").mkdir()
    file = tmp_path / "models" / "decoder.py"
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "TRAINING_CODE", ("models",))
    file.write_text('"""Text."""\nRATE = 0.5\n"""Of it."""\n\n\ndef f(x):\n    """Twice."""\n    return 2 * x\n')
    before = digest()
    file.write_text("RATE = 0.5  # half\ndef f(x):\n    return (2\n            * x)\n")
    assert digest() == before
    file.write_text("RATE = 0.5\ndef f(x):\n    return 3 * x\n")
    assert digest() != before


def test_the_training_code_is_all_that_a_worker_loads_to_train():
    """Whatever a worker imports and that is not in the digest only writes files, or is named in a run's spec."""
    source = "import sys, sweep.worker, sweep.train.train, sweep.train.checkpoint; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT, check=True)
    ours = {name for name in done.stdout.split() if name.split(".")[0] in ("sweep", "models", "analysis")}
    loaded = {name.replace(".", "/") for name in ours if (ROOT / f"{name.replace('.', '/')}.py").exists()}
    digested = {part.removesuffix(".py") for part in provenance.TRAINING_CODE}
    rest = {name for name in loaded if not any(name == part or name.startswith(part + "/") for part in digested)}
    assert rest == {"sweep/files", "sweep/plan/cost"}  # how ranks share a run, to rounding


# secrets

SECRETS = {
    "WANDB_API_KEY": "5ec2e7" * 6 + "aaaa",
    "HF_TOKEN": "hf_planted0token0planted0token0plan",
    "HUGGING_FACE_HUB_TOKEN": "hf_planted0other0planted0other0plan",
    "RAY_AUTH_TOKEN": "planted-ray-token-0123456789",
    "AWS_SECRET_ACCESS_KEY": "planted/aws/secret/0123456789",
}
TINY = [
    "scale=cpu", "+grid=product", "data=text", "data.heldout_fraction=0.3", "data.eval_tokens=512", "model.seq_len=32",
    "+grid.over.params=[2e3,4e3]", "+grid.over.tokens=[4096,8192]", "data.max_epochs=100",
    "optim.batch_tokens=512", "optim.batch_exponent=0", "executor.evaluations=0", "logger=wandb",
    "schedule.warmup_tokens=null", "schedule.warmup_fraction=0.03",
]  # fmt: skip


def test_secrets_of_the_environment_reach_no_file_and_no_line(tmp_path):
    """Not the spec, ledger, logs or what wandb keeps to send."""
    texts = tmp_path / "texts"
    texts.mkdir()
    draw = random.Random(0)
    for number in range(12):
        (texts / f"{number}.txt").write_text(" ".join(f"word{draw.randrange(500)}" for _ in range(600)))
    out = tmp_path / "out"
    environment = {
        **os.environ, **SECRETS, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "HOME": str(tmp_path / "home"),
    }  # fmt: skip
    (tmp_path / "home").mkdir()
    command = [*TINY, f"data.path={texts}", f"data.cache={tmp_path / 'cache'}", f"out={out}"]
    done = subprocess.run(
        [sys.executable, "-m", "sweep", *command], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode in (0, 1), done.stderr
    assert statuses(SweepFolder(out)) == ["finished"] * 4
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".json", ".jsonl", ".csv", ".log", ".wandb"} <= kinds, done.stdout
    for secret in SECRETS.values():
        assert secret not in done.stdout + done.stderr
        assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_what_makes_the_plan_the_results_and_the_report_reads_no_environment():
    found = []
    for part in ("analysis", "models", "sweep/plan", "sweep/train", "sweep/provenance.py", "sweep/execute/ledger.py"):
        for path in [ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"):
            if path.name == "ranks.py":  # it tells gloo which interface to use, before ranks meet
                continue
            names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
            found += [str(path.relative_to(ROOT))] if names & {"environ", "getenv"} else []
    assert found == []
