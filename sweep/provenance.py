"""plan.json: the runs of a sweep in order, with the resolved configuration and the code's version."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from sweep.files import SweepFolder, read_json, write_atomically
from sweep.plan.schema import SweepConfig
from sweep.plan.spec import PlannedRun


def write_plan(
    folder: SweepFolder, config: SweepConfig, corpus: dict[str, Any], runs: Sequence[PlannedRun], notes: Sequence[str]
) -> None:
    """Write plan.json whole. `corpus` describes the tokens, `notes` what was added to the grid and why, and what
    the rule for rate and batch does not cover. Versions that an earlier command ran with, where others, are kept
    in "earlier_versions"."""
    here, earlier = versions(), earlier_versions(folder)
    plan = {
        "sweep": config.sweep_name,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": here,
        "earlier_versions": [there for there in earlier if there != here],
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
    there, here = earlier_versions(folder)[-1:], versions()
    return [
        f"{name}: {before.get(name, 'absent')} there, {here.get(name, 'absent')} here"
        for before in there
        for name in sorted(before | here)
        if before.get(name) != here.get(name)
    ]


def corpus_fingerprint(folder: SweepFolder) -> str | None:
    """The fingerprint of the tokens that the folder's runs were trained on."""
    return read_json(folder.plan)["corpus"]["fingerprint"] if folder.plan.exists() else None


def versions() -> dict[str, str]:
    """Of the code (its commit, where it is a checkout), of Python and of the libraries it counts with."""
    found = {name: metadata.version(name) for name in ("torch", "numpy", "scipy", "tokenizers")}
    found["python"] = platform.python_version()
    checkout = Path(__file__).resolve().parent.parent
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        found["code"] = commit.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        found["code"] = metadata.version("scaling-sweep")
    return found


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {key: leaf for name, part in value.items() for key, leaf in _flat(part, f"{path}.{name}".lstrip(".")).items()}
