"""Laws that an analysis of ours fitted, read back from its fits.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from analysis.known import Known, Optima
from analysis.laws import LAWS

NO_INTERVAL = (
    "none for N and D: the file holds an interval for each constant, not how they vary together, so none "
    "follows for what is computed from several"
)


def read_laws(path: Path) -> dict[str, Known]:
    """The laws of a report by name, the one that predicts there first.

    Args:
        path: fits.json, the report's folder, or the sweep's.
    Raises ValueError: no such file, or not one of ours.
    """
    file = _file(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        laws = [_law(content, entry) for entry in content["fits"]]
        laws += [_allocation(content, entry) for entry in content["allocations"]]
        weights = _weights(file.with_name("predictions.json"))
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


def _weights(file: Path) -> dict[str, float]:
    """Of the latest prediction beside the fits, by law; none where there is no prediction."""
    if not file.is_file():
        return {}
    made = json.loads(file.read_text(encoding="utf-8"))
    return dict(made[-1]["weights"]) if made else {}


def _law(content: Mapping[str, Any], entry: Mapping[str, Any]) -> Known | None:
    """None for a law of other variables than N and D, or one that this version does not know."""
    law = LAWS.get(entry["law"])
    if law is None or tuple(entry["variables"]) != ("params", "tokens"):
        return None
    values = {item["name"]: float(item["value"]) for item in entry["parameters"]}

    def loss(params: np.ndarray, tokens: np.ndarray, unique: np.ndarray) -> np.ndarray:
        return law.loss_at(values, params=params, tokens=tokens)

    about = _about(content)
    notes = [f"the fit is {entry['status']}: {entry['reason']}"] if entry["reason"] else []
    return Known(
        name=entry["law"],
        equation=entry["equation"],
        source=f"fitted to {entry['n']} runs; the law: {entry['source']}",
        constants=values,
        loss=loss,
        irreducible=values.get("E"),
        interval=NO_INTERVAL + _intervals(entry["parameters"]),
        **{**about, "notes": (*notes, *about["notes"])},
    )


def _allocation(content: Mapping[str, Any], entry: Mapping[str, Any]) -> Known:
    about = _about(content)
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


def _about(content: Mapping[str, Any]) -> dict[str, Any]:
    frontier = content.get("frontier")
    rows = zip(*(frontier[name] for name in ("flops", "loss", "lo90", "hi90")), strict=True) if frontier else ()
    verdict = f"the analysis calls its own extrapolation {content['verdict']}: {'; '.join(content['reasons'])}"
    return {
        "counts": f"{content['params_kind']} parameters",
        "corpus": f"the analysed runs' own; their FLOPs are {content['flops_kind']}",
        "fitted": {name: tuple(span) for name, span in content.get("range", {}).items()},
        "notes": (verdict,),
        "frontier": tuple(tuple(map(float, row)) for row in rows),
    }


def _intervals(parameters: list[Mapping[str, Any]]) -> str:
    known = [
        f"{item['name']} {item['interval']['lo']:.4g} to {item['interval']['hi']:.4g}"
        for item in parameters
        if item["interval"]
    ]
    return f" ({', '.join(known)}; 90% each)" if known else ""


def _middle(span: tuple[float, float] | None) -> float:
    """A budget at which to anchor a power law; any is as good."""
    return float(np.sqrt(span[0] * span[1])) if span else 1e20
