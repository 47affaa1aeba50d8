"""Laws that an analysis of ours fitted, read back from its fits.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.known import Known, Optima
from analysis.laws import LAWS
from analysis.values import Verdict

NO_INTERVAL = "for N and D none: the file holds one for each constant, not how they vary together"


def read_laws(path: Path) -> dict[str, Known]:
    """The laws of a report by name, the one that predicts there first.

    Args:
        path: fits.json, the report's folder, or the sweep's.
    Raises ValueError: no such file, or not one of ours.
    """
    file = _file(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        made = _predictions(file.with_name("predictions.json"))
        about = _about(content, made)
        laws = [_law(entry, about) for entry in content["fits"]]
        laws += [_allocation(entry, about) for entry in content["allocations"]]
        weights = made[-1]["weights"] if made else {}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{file} is not the fits.json of an analysis ({type(error).__name__}: {error}); make one by "
            "python -m analysis runs=TABLE out=DIR"
        ) from error
    found = [law for law in laws if law]
    found.sort(key=lambda law: (-weights.get(law.name, 0.0), law.loss is None))
    if not found:
        raise ValueError(f"{file} holds no law of N and D and no allocation: nothing can be asked of it")
    return {law.name: law for law in found}


def _file(path: Path) -> Path:
    candidates = (path, path / "fits.json", path / "report" / "fits.json")
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ValueError(
        f"fits={path}: no such file, and no fits.json in it; give fits.json or the folder of a report, as "
        "python -m analysis runs=TABLE out=DIR writes it"
    )


def _predictions(file: Path) -> list[dict[str, Any]]:
    """Those beside the fits, oldest first; none where there is no file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []


def _law(entry: Mapping[str, Any], about: Mapping[str, Any]) -> Known | None:
    """None for a law of other variables than N and D, or one that this version does not know."""
    law = LAWS.get(entry["law"])
    if law is None or tuple(entry["variables"]) != ("params", "tokens"):
        return None
    values = {item["name"]: float(item["value"]) for item in entry["parameters"]}

    def loss(params: np.ndarray, tokens: np.ndarray, unique: np.ndarray) -> np.ndarray:
        return law.loss_at(values, params=params, tokens=tokens)

    failed = f"the fit is {entry['status']}: {entry['reason']}" if entry["reason"] else ""
    return Known(
        name=entry["law"],
        equation=entry["equation"],
        source=f"fitted to {entry['n']} runs; the law: {entry['source']}",
        constants=values,
        loss=loss,
        irreducible=values.get("E", 0.0),
        interval=NO_INTERVAL + _intervals(entry["parameters"]),
        **{**about, "caution": "; ".join(filter(None, (failed, about["caution"])))},
    )


def _allocation(entry: Mapping[str, Any], about: Mapping[str, Any]) -> Known:
    a, b = entry["a"], entry["b"]
    flops = _middle(about["fitted"].get("flops"))
    point = (
        flops,
        entry["params_factor"] * flops ** a["value"],
        entry["tokens_factor"] * flops ** b["value"],
    )
    notes = [entry["reason"]] if entry["reason"] else []
    return Known(
        name=f"approach-{entry['approach']}",
        equation="N_opt ∝ C^a, D_opt ∝ C^b",
        source=f"Hoffmann et al. 2022 (arXiv 2203.15556), approach {entry['approach']}, from "
        f"{entry['points']} points",
        constants={"a": a["value"], "b": b["value"]},
        optima=Optima(points=(point,), a=a["value"], b=b["value"]),
        interval=f"for the exponents only: a {a['lo']:.3f} to {a['hi']:.3f}, b {b['lo']:.3f} to "
        f"{b['hi']:.3f} (90%)",
        **{**about, "notes": (*notes, *about["notes"])},
    )


def _about(content: Mapping[str, Any], made: list[dict[str, Any]]) -> dict[str, Any]:
    """The fields of Known that all laws of a report share."""
    frontier = content.get("frontier") or {}
    columns = (frontier.get(name, []) for name in ("flops", "params", "tokens", "loss", "lo90", "hi90"))
    verdict = f"the analysis calls its extrapolation {content['verdict']}: {'; '.join(content['reasons'])}"
    supported = content["verdict"] == Verdict.SUPPORTED.value
    return {
        "counts": f"{content['params_kind']} parameters",
        "corpus": f"those of the analysed runs, whose FLOPs are {content['flops_kind']}",
        "fitted": {name: tuple(span) for name, span in content.get("range", {}).items()},
        "notes": (verdict,) if supported else (),
        "caution": "" if supported else verdict,
        "frontier": tuple(tuple(map(float, row)) for row in zip(*columns, strict=True)),
        "predicted": tuple(
            (*(p["target"][name] for name in ("flops", "params", "tokens")), p["loss"], p["lo90"], p["hi90"])
            for p in made
        ),
    }


def _intervals(parameters: list[Mapping[str, Any]]) -> str:
    known = [
        f"{item['name']} {item['interval']['lo']:.4g} to {item['interval']['hi']:.4g}"
        for item in parameters
        if item["interval"]
    ]
    return f" (90%: {', '.join(known)})" if known else ""


def _middle(span: tuple[float, float] | None) -> float:
    """A budget at which to anchor a power law; any is as good."""
    return float(np.sqrt(span[0] * span[1])) if span else 1e20
