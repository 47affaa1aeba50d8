"""The look of every figure: colours by role, in light and dark, and SVG text that follows the reader.

Figures are drawn in the light colours. In the SVG each of these becomes a CSS variable, so that one
drawing reads in both modes: inline in the page it takes the page's variables, as a file it brings
its own. Colours are told apart by lightness and marker too, never by hue alone.
"""

from __future__ import annotations

import io
import re

import matplotlib
from cycler import cycler
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

INK, MUTED, GRID, PAPER, ACCENT, TARGET = "#1f2328", "#69707a", "#dfe2e6", "#fefefe", "#0b62b0", "#c2410c"
GROUND = {"fc": PAPER, "ec": "none", "alpha": 0.8, "pad": 1.0}
"""Behind a label, so that what it lies on does not run through it."""
LAWS = ("#0b62b1", "#a4570b", "#0f7a5c", "#8b3f86")
"""Blue, orange, green and purple after Okabe and Ito's palette for the colour-blind, darkened to
contrast with white; in the order in which the analysis lists its laws."""

_DARK = {
    INK: "#e8eaed",
    MUTED: "#9aa3ad",
    GRID: "#343a41",
    PAPER: "#14171a",
    ACCENT: "#6db3f2",
    TARGET: "#ff8f5a",
    **dict(zip(LAWS, ("#6db3f3", "#e8a23c", "#3fc79b", "#dd93d6"), strict=True)),
}

STEPS = 12
"""Shades of the sequential scale; more budgets than this share neighbouring ones."""
# Viridis is even in lightness for every kind of colour vision; its end that would fade into the
# page is left out: yellow on white, dark violet on black.
_VIRIDIS = matplotlib.colormaps["viridis"]
_SEQUENTIAL = [to_hex(_VIRIDIS(0.8 * i / (STEPS - 1))) for i in range(STEPS)]
_SEQUENTIAL_DARK = [to_hex(_VIRIDIS(0.4 + 0.6 * i / (STEPS - 1))) for i in range(STEPS)]
_DARK.update(zip(_SEQUENTIAL, _SEQUENTIAL_DARK, strict=True))

_VARIABLE = {light: f"--figure-{number}" for number, light in enumerate(_DARK)}

RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "scaling",
    "text.parse_math": False,  # a "$" in a run's name is a dollar
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.facecolor": "none",
    "axes.prop_cycle": cycler(color=[INK]),  # every other colour is named where it is drawn
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.6,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
}
PNG_DPI = 200


def sequential(n: int, in_pixels: bool = False) -> list[str]:
    """n colours in order of lightness, as far apart as the scale allows. Pixels keep the light page's
    colour on a dark one: `in_pixels` leaves out those that black would swallow."""
    if n == 1:
        return [_SEQUENTIAL[STEPS // 3]]
    first = STEPS // 3 if in_pixels else 0
    return [_SEQUENTIAL[first + round(i * (STEPS - 1 - first) / (n - 1))] for i in range(n)]


def variables(dark: bool) -> str:
    """The colours as CSS declarations."""
    return "".join(f"{name}:{_DARK[light] if dark else light};" for light, name in _VARIABLE.items())


def png(figure: Figure) -> bytes:
    """The figure in its light colours on an opaque ground."""
    with matplotlib.rc_context(RC):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=PNG_DPI, metadata={"Software": None})
    return buffer.getvalue()


def inline_svg(figure: Figure, name: str, label: str) -> str:
    """An <svg> element for an HTML page that declares `variables`; `label` is its text for readers
    that cannot see it. Its ids begin with `name`; the same figure always gives the same text."""
    with matplotlib.rc_context({**RC, "svg.hashsalt": name}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # matplotlib's group names repeat from figure to figure
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'((?:\bid="|url\(#|href="#))', rf"\g<1>{name}-", svg)
    svg = re.sub(r'style="[^"]*"', _with_variables, svg)
    opening = re.match(r"<svg[^>]*>", svg).group()
    view = re.search(r'viewBox="[^"]*"', opening).group()
    namespaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {namespaces} {view} role="img" aria-label="{_attribute(label)}">{svg[len(opening) :]}'


def standalone_svg(inline: str) -> str:
    """A file from `inline_svg`'s text: with its own colours, ground and reader's mode."""
    end = inline.index(">") + 1
    width, height = re.search(r'viewBox="0 0 (\S+) (\S+)"', inline).groups()
    opening = inline[: end - 1] + f' width="{width}pt" height="{height}pt">'
    style = (
        f"<style>:root{{{variables(dark=False)}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{variables(dark=True)}}}}}</style>"
    )
    ground = f'<rect width="100%" height="100%" style="fill:var({_VARIABLE[PAPER]})"/>'
    return opening + style + ground + inline[end:] + "\n"


def _with_variables(style: re.Match[str]) -> str:
    text = re.sub(r"#[0-9a-f]{6}", _variable_for, style.group())
    return text.replace("'DejaVu Sans'", "system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif")


def _variable_for(colour: re.Match[str]) -> str:
    name = _VARIABLE.get(colour.group())
    return colour.group() if name is None else f"var({name})"


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")
