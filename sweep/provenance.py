"""plan.json: the runs of a sweep in order, with the resolved configuration and the code's version."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from sweep.files import SweepFolder, read_json, write_atomically
from sweep.plan.schema import SweepConfig
from sweep.plan.spec import PlannedRun

ROOT = Path(__file__).resolve().parent.parent
TRAINING_CODE = (
    *("models", "sweep/train", "sweep/data/batches.py", "sweep/data/shards.py", "sweep/plan/batch.py"),
    *("sweep/plan/spec.py", "sweep/worker.py"),
)
"""What turns a run's spec and tokens into its result."""
DECIDES_A_LOSS = ("torch", "training_code")
"""Of `versions`: what a loss may change with by more than its last digits."""


def write_plan(
    folder: SweepFolder, config: SweepConfig, corpus: dict[str, Any], runs: Sequence[PlannedRun], notes: Sequence[str]
) -> None:
    """Write plan.json whole. `corpus` describes the tokens, `notes` what was added to the grid and why, and what
    the rule for rate and batch does not cover. Versions that an earlier command ran with, where others, are kept
    in "earlier_versions"; "trained_with" are those of the first command that trained, or that accepted a change."""
    here, earlier = versions(), earlier_versions(folder)
    trained = None if config.on_change == "accept" else trained_with(folder, runs)
    plan = {
        "sweep": config.sweep_name,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": here,
        "earlier_versions": [there for there in earlier if there != here],
        "trained_with": trained or here,
        "recipe": config.recipe,
        "config": dataclasses.asdict(config),
        "corpus": corpus,
        "notes": list(notes),
        "runs": [],
    }
    # a line a run: to indent each takes ten times as long, and 10,000 of them are not read
    lines = ",\n  ".join(json.dumps(_entry(run), allow_nan=False) for run in runs)
    head = json.dumps(plan, indent=1, allow_nan=False).removesuffix("]\n}")
    write_atomically(folder.plan, f"{head}\n  {lines}\n ]\n}}\n")


def _entry(run: PlannedRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "group": run.group,
        "role": run.role,
        "parent": run.parent.run_id if run.parent else None,
        "spec": run.spec.to_json(),
    }


def recipe_difference(folder: SweepFolder, recipe: dict[str, Any]) -> list[str] | None:
    """What the folder's sweep does differently, as "key: there, here" lines; None without plan.json."""
    if not folder.plan.exists():
        return None
    there, here = _flat(read_json(folder.plan)["recipe"]), _flat(recipe)
    return [
        f"{key}: {there.get(key, 'absent')!r} there, {here.get(key, 'absent')!r} asked for"
        for key in sorted(there | here)
        if there.get(key) != here.get(key)
    ]


def earlier_versions(folder: SweepFolder) -> list[dict[str, str]]:
    """What earlier commands on this folder ran with, each once, the latest last."""
    if not folder.plan.exists():
        return []
    there = read_json(folder.plan)
    return [*there.get("earlier_versions", []), there["versions"]]


def changed_versions(folder: SweepFolder) -> list[str]:
    """What the last command on this folder ran with and this one doesn't, as "name: there, here" lines."""
    return [line for there in earlier_versions(folder)[-1:] for line in _differences(there, versions())]


def trained_with(folder: SweepFolder, runs: Sequence[PlannedRun]) -> dict[str, str] | None:
    """What those of these runs that have begun are trained with; None where none has."""
    if not folder.plan.exists() or not any(folder.run(run.run_id).spec.exists() for run in runs):
        return None
    there = read_json(folder.plan)
    return there.get("trained_with") or earlier_versions(folder)[0]


def changed_training(folder: SweepFolder, runs: Sequence[PlannedRun]) -> list[str]:
    """As `changed_versions`, of what these runs are trained with, where that may change a loss; else empty.
    What a plan.json of an older version does not tell counts as unchanged."""
    there, here = trained_with(folder, runs), versions()
    if there is None or all(there.get(name, here[name]) == here[name] for name in DECIDES_A_LOSS):
        return []
    return _differences(there, here)


def _differences(there: dict[str, str], here: dict[str, str]) -> list[str]:
    return [
        f"{name}: {there.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for name in sorted(there | here)
        if there.get(name) != here.get(name)
    ]


def corpus_fingerprint(folder: SweepFolder) -> str | None:
    """The fingerprint of the tokens that the folder's runs were trained on."""
    return read_json(folder.plan)["corpus"]["fingerprint"] if folder.plan.exists() else None


def versions() -> dict[str, str]:
    """Of the code (its commit, where it is a checkout, and what its training part does), of Python and of the
    libraries it counts with."""
    found = {name: metadata.version(name) for name in ("torch", "numpy", "scipy", "tokenizers")}
    found |= {"python": platform.python_version(), "training_code": training_code()}
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        found["code"] = commit.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        found["code"] = _installed_version()
    return found


def _installed_version() -> str:
    try:
        return metadata.version("scaling-sweep")
    except metadata.PackageNotFoundError:  # a copy of the source, used as it lies
        return "unknown"


@cache
def training_code() -> str:
    """A digest of the statements of the training code: of no comment, docstring or line break in it."""
    files = [path for part in TRAINING_CODE for path in ([ROOT / part] if part.endswith(".py") else (ROOT / part).rglob("*.py"))]
    statements = [ast.unparse(_WithoutText().visit(ast.parse(path.read_text(encoding="utf-8")))) for path in sorted(files)]
    return hashlib.sha256("\0".join(statements).encode()).hexdigest()[:12]


class _WithoutText(ast.NodeTransformer):
    """Drops strings that stand alone: docstrings, and what is said of a constant."""

    def visit_Expr(self, node: ast.Expr) -> ast.Expr | None:
        value = node.value
        return None if isinstance(value, ast.Constant) and isinstance(value.value, str) else node


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{path}.{name}".lstrip(".")).items()}
