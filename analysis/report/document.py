"""The report's contents in their order: Analysis -> Document, from which both formats are rendered."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from analysis.report import findings, headline, health, rates, tables, words
from analysis.report.tables import Table
from analysis.values import Analysis, latest

PROBLEMS_SHOWN = 8
"""Problems told before the first figure; the others follow at the end. Assumption: more push the
figure off the first screen, and the analysis puts the worst first."""


@dataclass(frozen=True)
class Listing:
    """Text to be shown letter by letter: a command, a configuration."""

    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """`opening` stands before the figures, a paragraph each; `figures` are names of drawings; they stand above
    the tables. `points` is a list of sentences."""

    title: str
    figures: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    listings: tuple[Listing, ...] = ()
    points: tuple[str, ...] = ()
    opening: tuple[str, ...] = ()


@dataclass(frozen=True)
class Document:
    """`lede`: what a decision rests on, a sentence each. `problems`: what may overturn it, worst first;
    where there are many, the last one says where the others stand.
    `verdict` names the badge's class, `badge` is what it says; "": none."""

    title: str
    verdict: str
    badge: str
    tally: str
    units: str
    lede: tuple[str, ...]
    problems: tuple[str, ...]
    sections: tuple[Section, ...]


def compose(analysis: Analysis, drawn: Collection[str] = ()) -> Document:
    """Everything that the report says about `analysis`; `drawn` names the figures that there are."""
    predictions = latest(analysis.predictions)[-1:]
    reasons = predictions[0].reasons if predictions else analysis.reasons
    problems = headline.problems(analysis)
    beyond = len(problems) - PROBLEMS_SHOWN
    more = (f"{words.plural(beyond, 'further problem')} at the end of this report.",) if beyond > 0 else ()
    rate_section = Section(
        "Learning rate and width", (rates.NAME,), (rates.drifts(analysis), rates.optima(analysis))
    )
    sections = (
        *(
            Section(found.title, (findings.name(found),), (findings.numbers(found),), (), found.notes, findings.opening(found))
            for found in analysis.findings
        ),
        *(() if analysis.fits else (rate_section,)),
        Section(
            "Prediction and measurement",
            ("loss-against-compute", "law-comparison"),
            (
                tables.predictions(analysis),
                *(tables.laws_of(prediction, analysis) for prediction in predictions),
                *(tables.spread_of(prediction) for prediction in predictions),
                tables.advice(analysis),
            ),
        ),
        _verdict_section(reasons, headline.unasked(analysis)),
        Section(
            "Compute-optimal size and data",
            ("isoflop-curves", "contours", "optimal-allocation"),
            (tables.budgets(analysis), tables.exponents(analysis), tables.bias(analysis)),
        ),
        Section(
            "Fitted laws",
            ("residuals",),
            (
                tables.laws(analysis),
                tables.parameters(analysis),
                tables.conventions(analysis),
                tables.entropy(analysis),
            ),
        ),
        Section("Backtests", ("backtests",), (tables.backtests(analysis),)),
        *((rate_section,) if analysis.fits else ()),
        Section("Runs", (), (health.table(analysis), tables.runs(analysis), tables.exclusions(analysis))),
        Section("Further problems", points=problems[PROBLEMS_SHOWN:]),
        _reproduction(analysis),
    )
    filled = (_filled(section, drawn) for section in sections)
    return Document(
        title=analysis.title,
        verdict=analysis.verdict.name.lower(),
        badge=headline.badge(analysis),
        tally=headline.tally(analysis),
        units=headline.units(analysis),
        lede=headline.lede(analysis),
        problems=(*problems[:PROBLEMS_SHOWN], *more),
        sections=tuple(s for s in filled if s.figures or s.tables or s.listings or s.points or s.opening),
    )


def _verdict_section(reasons: tuple[str, ...], unasked: str) -> Section:
    if unasked:
        return Section("Were a larger run to be predicted", points=reasons, opening=(unasked,))
    return Section("Why this verdict", points=reasons if len(reasons) > headline.REASONS_TOLD else ())


def _filled(section: Section, drawn: Collection[str]) -> Section:
    """The section without figures that were not drawn and tables that have no rows."""
    return Section(
        section.title,
        tuple(name for name in section.figures if name in drawn),
        tuple(table for table in section.tables if table is not None),
        section.listings,
        section.points,
        section.opening,
    )


def _reproduction(analysis: Analysis) -> Section:
    """Short values in a table; commands and what has several lines letter by letter."""
    metadata = {key: _opened(value) for key, value in analysis.metadata.items()}
    long = [key for key, value in metadata.items() if key == "command" or "\n" in value or len(value) > 100]
    short = [(key, value) for key, value in metadata.items() if key not in long]
    listings = tuple(Listing(key, metadata[key].rstrip("\n")) for key in long)
    versions = tables.table("Versions and data", ("|what", "|value"), short)
    return Section("How to reproduce this", (), (versions,), listings)


def _opened(text: str) -> str:
    """What is JSON of several values as lines, "key: value", indented; anything else as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return "\n".join(_lines(value)) if isinstance(value, (dict, list)) and value else text


def _lines(value: Any, margin: str = "") -> Iterator[str]:
    pairs = value.items() if isinstance(value, dict) else (("-", item) for item in value)
    for key, item in pairs:
        name = key if key == "-" else f"{key}:"
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        if isinstance(item, dict) and item or any(isinstance(part, (dict, list)) for part in inner):
            yield f"{margin}{name}"
            yield from _lines(item, margin + "  ")
        else:
            said = item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)
            yield f"{margin}{name} {said}"
