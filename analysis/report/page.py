"""The report: one page that opens anywhere (index.html), the same in Markdown, and its figures as files."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.report import findings, theme
from analysis.report.document import compose
from analysis.report.figures import NAMES, draw
from analysis.values import Analysis

TEMPLATES = Path(__file__).parent / "templates"


def write_report(analysis: Analysis, out: Path) -> Path:
    """Write out/index.html, out/report.md and out/figures/<name>.svg and .png; returns the page's path.

    The page needs no network and no other file. What was there before is replaced; the page last,
    so that it never shows a report that is half there. Figures that are no longer drawn are removed.

    Raises:
        OSError: `out` cannot be written; what was written up to then stays.
    """
    drawings = {drawing.name: drawing for drawing in draw(analysis)}
    document = compose(analysis, drawings)
    figures = out / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    earlier = {path.stem for path in figures.glob(f"{findings.PREFIX}*")}
    for name in {*NAMES, *earlier} - set(drawings):
        for suffix in (".svg", ".png"):
            (figures / f"{name}{suffix}").unlink(missing_ok=True)
    inline = {}
    for name, drawing in drawings.items():
        svg = theme.inline_svg(drawing.figure, name, drawing.title)
        (figures / f"{name}.svg").write_text(theme.standalone_svg(svg), encoding="utf-8")
        (figures / f"{name}.png").write_bytes(theme.png(drawing.figure))
        inline[name] = Markup(svg)
    values = {"document": document, "drawings": drawings}
    markdown = _markdown().get_template("report.md.j2").render(values)
    (out / "report.md").write_text(markdown, encoding="utf-8")
    colours = {"light": Markup(theme.variables(dark=False)), "dark": Markup(theme.variables(dark=True))}
    page = _html().get_template("report.html.j2").render(values, svg=inline, colours=colours)
    (out / "index.html").write_text(page, encoding="utf-8")
    return out / "index.html"


def _html() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _markdown() -> Environment:
    """Every value is escaped for Markdown, unless `fenced` has already made it safe."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        finalize=_escape_markdown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["fenced"] = _fenced
    return environment


def _escape_markdown(value: object) -> object:
    """One line in which nothing is markup, in a sentence or in a table's cell."""
    if isinstance(value, Markup):
        return value
    text = " ".join(str(value).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", text)


def _fenced(text: str) -> Markup:
    """A code block whose fence is longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return Markup(f"{fence}text\n{text}\n{fence}")
