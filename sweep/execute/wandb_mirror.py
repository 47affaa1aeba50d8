"""Rebuild a sweep in wandb from its folder: `sweep wandb outputs/<sweep>`.

What is on disk is the truth; this shows it. One wandb run for each run that has ended and one for
the report, with ids that follow from the sweep's name and the run, so that to publish again is to
replace. `wandb/mirrored.jsonl` remembers what was published, and how.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import select
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from sweep.execute.ledger import OUTCOMES
from sweep.execute.lock import FileLock, Locked, is_held
from sweep.execute.metrics import read_history
from sweep.files import SweepFolder, read_json
from sweep.plan.spec import digest

LOOK_SECONDS = 2.0  # assumption: how late a finished run may show up
REACH_SECONDS = 3.0  # assumption: a server that answers at all answers in this time
LOCK_SECONDS = 30.0  # assumption: for the last runs of another mirror
INIT_SECONDS = 20.0  # assumption: wandb's own limit of 90 s holds up a whole sweep's mirror
NICENESS = 10  # assumption: enough to give way to the training processes
LONGEST_TAG = 64  # wandb refuses longer ones

Row = dict[str, str]

CONFIG = {
    "run_id": "run_id", "group": "group", "role": "role", "arch": "arch", "n_layer": "n_layer",
    "d_model": "d_model", "N": "params_non_embedding", "params_total": "params_total", "D": "tokens",
    "C": "flops", "lr": "lr", "batch_tokens": "batch_tokens", "seq_len": "seq_len",
    "vocab_size": "vocab_size", "seed": "seed", "unique_tokens": "unique_tokens",
    "data_fingerprint": "data_fingerprint",
    "param": "param", "parent": "parent",
}  # fmt: skip
HISTORY_NAMES = {"loss": "train_loss"}
TEXT = ("run_id", "group", "role", "status", "arch", "param", "parent", "device", "data_fingerprint")
SUMMARY = (
    "status", "loss", "loss_se", "bits_per_byte", "tokens", "flops", "flops_6nd", "epochs",
    "wall_seconds", "tokens_per_second", "device",
)  # fmt: skip


@dataclass(frozen=True)
class Item:
    """Something to publish. `state` changes when what is on disk does."""

    name: str
    state: str
    row: Row | None = None  # None: the report


class Memory:
    """wandb/mirrored.jsonl: what was published in which state, and whether online or offline."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._published: dict[str, tuple[str, str]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                said = json.loads(line)
                self._published[said["name"]] = (said["state"], said["mode"])
            except (ValueError, KeyError, TypeError):
                continue  # cut off when an earlier mirror was killed: published again

    def has(self, item: Item, online: bool) -> bool:
        """Whether it is where it could be by now: what went offline goes online once that is open."""
        state, mode = self._published.get(item.name, ("", ""))
        return state == item.state and (mode == "online" or not online)

    def add(self, item: Item, mode: str) -> None:
        self._published[item.name] = (item.state, mode)
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": item.name, "state": item.state, "mode": mode}) + "\n")


class Publisher:
    """wandb, imported and opened when there is first something to publish."""

    def __init__(self, folder: SweepFolder, project: str) -> None:
        import wandb

        self._wandb = wandb
        self._folder = folder
        self._project = project
        self._sweep = folder.path.resolve().name
        self.mode, self.why = choose_mode(wandb)

    def publish(self, item: Item) -> None:
        """Replaces the wandb run of this item. Raises whatever wandb does."""
        if item.row is None:
            self._publish_report()
        else:
            self._publish_run(item.row)

    def _publish_run(self, row: Row) -> None:
        folder = self._folder.run(row["run_id"])
        spec = read_json(folder.spec)["spec"]
        config = {name: _value(row, column) for name, column in CONFIG.items()}
        tags = [row[name][:LONGEST_TAG] for name in ("group", "role", "status") if row[name]]
        job_type = "trunk" if row["role"] == "trunk" else "cooldown" if row["parent"] else "train"
        run = self._open(row["run_id"], job_type, {"sweep": self._sweep, **config, "spec": spec}, tags)
        run.define_metric("*", step_metric="flops")
        for line in read_history(folder.metrics):
            # In the summary "loss" is the held-out one, as everywhere in this project.
            run.log({HISTORY_NAMES.get(name, name): value for name, value in line.items()})
        run.summary.update({name: _value(row, name) for name in SUMMARY if row[name]})
        reason = read_json(folder.result).get("reason")
        if reason:
            run.summary["reason"] = reason
        run.finish(exit_code=int(row["status"] == "failed"))

    def _publish_report(self) -> None:
        rows = read_rows(self._folder)
        figures = sorted((self._folder.report / "figures").glob("*.png"))
        run = self._open("report", "report", {"sweep": self._sweep}, [])
        shown: dict[str, Any] = {f"figures/{path.stem}": self._wandb.Image(str(path)) for path in figures}
        page = _report_page(self._folder).read_text(encoding="utf-8")
        shown["report"] = self._wandb.Html(page, inject=False)
        columns = list(rows[0])
        shown["runs"] = self._wandb.Table(
            columns=columns, data=[[_value(row, name) for name in columns] for row in rows]
        )
        run.log(shown)
        run.finish()

    def _open(self, name: str, job_type: str, config: dict[str, Any], tags: list[str]) -> Any:
        quiet = self._wandb.Settings(
            init_timeout=INIT_SECONDS,
            silent=True,
            console="off",
            save_code=False,
            disable_git=True,
            # This process is not the one that trains: its machine and command say nothing.
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
        )
        return self._wandb.init(
            project=self._project,
            id=f"{digest(self._sweep)[:8]}-{name}",
            name=name,
            group=self._sweep,
            job_type=job_type,
            config=config,
            tags=tags,
            dir=str(self._folder.path),  # wandb makes the folder "wandb" in it
            mode=self.mode,
            reinit="finish_previous",
            settings=quiet,
        )


def choose_mode(wandb: Any) -> tuple[str, str]:
    """("online" | "offline", why), without ever asking for a key or waiting long.

    Raises RuntimeError where the environment disables wandb.
    """
    asked = os.environ.get("WANDB_MODE")
    if asked == "disabled":
        raise RuntimeError("WANDB_MODE=disabled")
    if asked in ("offline", "dryrun"):
        return "offline", f"WANDB_MODE={asked}"
    if not wandb.login(prompt=False, verify=False):
        return "offline", "there is no API key"
    server = wandb.setup().settings.base_url
    if not is_reachable(server):
        return "offline", f"{server} does not answer within {REACH_SECONDS:.0f} s"
    return "online", f"at {server}"


def is_reachable(url: str) -> bool:
    """Whether a server answers there, through the proxies of the environment; with an error too."""
    try:
        urllib.request.urlopen(url, timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def ended_items(folder: SweepFolder, with_report: bool) -> Iterator[Item]:
    """What there is to publish: every run that has a result, and the report where it is asked for."""
    seen = set()
    for row in read_rows(folder):
        if row["status"] in OUTCOMES and row["run_id"] not in seen:
            seen.add(row["run_id"])
            written = _time_written(folder.run(row["run_id"]).result)
            yield Item(row["run_id"], f"{row['status']} {written}", row)
    page = _report_page(folder)
    if with_report and seen and page.exists():
        yield Item("report", hashlib.sha256(page.read_bytes()).hexdigest())


def read_rows(folder: SweepFolder) -> list[Row]:
    """runs.csv; empty before it is there. It is only ever replaced whole."""
    try:
        with open(folder.runs_csv, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


class Mirroring:
    """Publishes what is new at every look. The first failure online turns to offline, the first one
    offline ends it: each is one line."""

    def __init__(self, folder: SweepFolder, project: str, say: Callable[[str], None]) -> None:
        self._folder, self._project, self._say = folder, project, say
        self._memory = Memory(folder.wandb / "mirrored.jsonl")
        self._publisher: Publisher | None = None
        self._looked_at = 0
        self.published = 0

    def look(self, *, last: bool) -> bool:
        """Publish all that is new, at the last look with the report, which may still change before.
        False once the mirror is to be given up."""
        written = _time_written(self._folder.runs_csv)
        if written == self._looked_at and not last:
            return True
        self._looked_at = written
        online = self._publisher is None or self._publisher.mode == "online"
        items = ended_items(self._folder, with_report=last)
        return all(self._publish(item) for item in items if not self._memory.has(item, online))

    def _publish(self, item: Item) -> bool:
        try:
            publisher = self._publisher or self._open()
            if self._memory.has(item, publisher.mode == "online"):
                return True
            publisher.publish(item)
            self._memory.add(item, publisher.mode)
            self.published += 1
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # SystemExit too: nothing in there may end the mirror unsaid
            return self._failed(item, error)
        return True

    def _open(self) -> Publisher:
        self._publisher = Publisher(self._folder, self._project)
        self._say(f"wandb: {self._publisher.mode} ({self._publisher.why})")
        return self._publisher

    def _failed(self, item: Item, error: BaseException) -> bool:
        what = f"wandb: {item.name} could not be mirrored ({type(error).__name__}: {_one_line(error)})"
        if self._publisher is None or self._publisher.mode == "offline":
            self._say(f"{what}; the mirror ends, the sweep goes on without it")
            return False
        self._say(f"{what}; going on offline")
        self._publisher.mode = "offline"
        return self._publish(item)


def follow(mirroring: Mirroring, until_closed: TextIO) -> bool:
    """Look again and again until the coordinator closes our input or is gone, and then once more."""
    going = True
    while going:
        going = mirroring.look(last=False)
        ready, _, _ = select.select([until_closed], [], [], LOOK_SECONDS)
        if ready:
            return going and mirroring.look(last=True)
    return going


def main(argv: Sequence[str] | None = None) -> int:
    """0 when all is published; 1, after a line that says why, when it is not."""
    parser = argparse.ArgumentParser(prog="sweep wandb", description=__doc__)
    parser.add_argument("folder", type=Path, help="outputs/<sweep>")
    parser.add_argument("--project", default="scaling-sweep", help="wandb project (%(default)s)")
    parser.add_argument("--again", action="store_true", help="publish what was published before, too")
    parser.add_argument("--follow", action="store_true", help="go on until standard input is closed")
    arguments = parser.parse_args(argv)
    folder = SweepFolder(arguments.folder)
    if not folder.path.is_dir():
        parser.error(f"{folder.path} is no folder")
    say = _take_standard_output()
    held = FileLock(
        folder.wandb / "mirror.lock", held="wandb: the sweep is already mirrored by", advice="Wait for it."
    )
    try:
        _wait_until_free(held.path)
        with held:
            if arguments.again:
                (folder.wandb / "mirrored.jsonl").unlink(missing_ok=True)
            mirroring = Mirroring(folder, arguments.project, say)
            if arguments.follow:
                os.nice(NICENESS)
                return 0 if follow(mirroring, sys.stdin) else 1
            complete = mirroring.look(last=True)
            say(f"wandb: {mirroring.published} runs were mirrored")
            return 0 if complete else 1
    except (Locked, OSError) as error:
        say(_one_line(error))
        return 1


def _wait_until_free(lock: Path) -> None:
    """The mirror of a killed coordinator first publishes what it can: give it a while to end."""
    deadline = time.monotonic() + LOCK_SECONDS
    while is_held(lock) and time.monotonic() < deadline:
        time.sleep(0.2)


def _take_standard_output() -> Callable[[str], None]:
    """Keep standard output for our own lines: what wandb prints goes to standard error."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(text: str) -> None:
        try:
            print(text, file=ours, flush=True)
        except BrokenPipeError:  # the coordinator is gone; what is published stays
            pass

    return say


def _report_page(folder: SweepFolder) -> Path:
    return folder.report / "index.html"


def _time_written(path: Path) -> int:
    """In nanoseconds; 0 where there is no file."""
    return path.stat().st_mtime_ns if path.exists() else 0


def _value(row: Row, column: str) -> Any:
    """A cell of runs.csv as the number it is, or the text; None where it is empty."""
    cell = row[column]
    if column in TEXT or not cell:
        return cell or None
    return float(cell) if any(sign in cell for sign in ".en") else int(cell)  # 0.1, 1e-05, inf, nan


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


if __name__ == "__main__":
    sys.exit(main())
