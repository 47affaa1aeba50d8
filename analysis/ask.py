"""`python -m analysis.ask QUESTION key=value ...`: answers from a published law or from one fitted here."""

from __future__ import annotations

import difflib
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import answers, tradeoffs
from analysis.answers import Answer, Table
from analysis.fitted import read_laws
from analysis.hardware import ACCELERATORS, USUAL_MFU, Machine
from analysis.known import FLOPS_PER_PARAM, Known
from analysis.published import LAWS
from analysis.units import count, parse, power

WIDTH = 100
"""Columns that prose is wrapped to."""


class UsageError(ValueError):
    """What was asked cannot be answered; the message says what can."""


@dataclass(frozen=True)
class Question:
    """needs: keys that must be given. may: keys that can be. law: whether one answers it, else nobody's
    law is needed. default: the law where the user names none."""

    name: str
    asks: str
    example: str
    needs: tuple[str, ...]
    may: tuple[str, ...]
    answer: Callable[..., Answer]
    law: bool = True
    default: str = "besiroglu"

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.needs, *self.may, *(("law", "fits") if self.law else ()))


MACHINE = ("gpus", "gpu", "mfu", "price")
ABOUT = {
    "params": "N, parameters",
    "tokens": "D, training tokens",
    "flops": "C, training FLOPs",
    "unique": "U, distinct tokens there are",
    "epochs": "passes over them",
    "loss": "nats a token",
    "wanted": "a loss to reach, nats a token",
    "to": "N of the other model",
    "served": "tokens that the model will read and write when deployed",
    "gpus": "how many accelerators",
    "gpu": f"which: {', '.join(ACCELERATORS)}",
    "days": "for how long",
    "mfu": f"share of peak FLOP/s reached, 0 to 1 (default {USUAL_MFU:g})",
    "price": "an accelerator and hour, in any currency (no default)",
    "cost": f"training FLOPs for each parameter and token (default {FLOPS_PER_PARAM:g})",
    "law": f"a published law: {', '.join(LAWS)}; or with fits=, one of the report",
    "fits": "fits.json or the folder of a report: answer from its fitted law",
}
QUESTIONS = {
    question.name: question
    for question in (
        Question(
            "tokens",
            "How many tokens does a model need at least?",
            "params=10B",
            ("params",),
            ("cost",),
            answers.tokens,
        ),
        Question(
            "params",
            "Which model can so many tokens feed?",
            "tokens=1T",
            ("tokens",),
            ("cost",),
            answers.params,
        ),
        Question(
            "budget",
            "Which N and D, what loss, how long, what cost?",
            "gpus=100 gpu=a100 days=30 price=2",
            (),
            ("flops", *MACHINE, "days", "unique", "cost"),
            answers.budget,
        ),
        Question(
            "time",
            "How long does a run take?",
            "params=65B tokens=1.4T gpus=1024 gpu=a100 mfu=0.55",
            ("params", "tokens", "gpus", "gpu"),
            ("mfu", "price", "cost"),
            answers.time,
            law=False,
        ),
        Question(
            "loss",
            "What loss does a run reach?",
            "params=7B tokens=2T",
            (),
            ("params", "tokens", "flops", "unique"),
            answers.loss,
        ),
        Question(
            "transfer",
            "My N at D tokens has this loss: what would another size give, on how many tokens?",
            "params=10B tokens=200B loss=2.1 to=100B",
            ("params", "tokens", "loss", "to"),
            ("wanted", "cost"),
            tradeoffs.transfer,
        ),
        Question(
            "serve",
            "The model will serve so many tokens: how small should it be, at equal loss?",
            "params=13B served=2T",
            ("served",),
            ("params", "tokens", "loss", "cost"),
            tradeoffs.serve,
        ),
        Question(
            "repeat",
            "What are several passes over the same tokens worth, and what one more decade of them?",
            "unique=100B epochs=4",
            ("unique", "epochs"),
            ("params",),
            tradeoffs.repeat,
            default="muennighoff",
        ),
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 answered, 2 not."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        print(respond(words))
    except (ValueError, OSError) as error:
        print(f"ask: {error}", file=sys.stderr)
        return 2
    return 0


def respond(words: Sequence[str]) -> str:
    """The text of the answer. Raises ValueError: a question, key, value, law or accelerator that is none."""
    if not words or words[0] in ("help", "-h", "--help"):
        return usage()
    name, *rest = words
    if name == "laws":
        return list_laws(read_laws(Path(read(rest, ("fits",))["fits"])) if rest else LAWS)
    if name == "gpus":
        read(rest, ())
        return list_gpus()
    question = _one_of(QUESTIONS, name, "question", f"{', '.join(QUESTIONS)}, laws, gpus")
    text = read(rest, question.keys)
    missing = [key for key in question.needs if key not in text]
    if missing:
        lacks = ", ".join(f"{key}= ({ABOUT[key]})" for key in missing)
        raise UsageError(f"question '{name}' needs {lacks}; for example: {name} {question.example}")
    given = numbers(text)
    if not question.law:
        return render(question.answer(**given), chosen=True)
    law = choose(question, text)
    if "cost" in text and law.optima:
        raise UsageError(
            f"law '{law.name}' counts FLOPs its authors' way, which cost= cannot change; leave it out"
        )
    answer = question.answer(law, **given)
    named = "law" in text or "fits" in text
    compared = answers.others(answer) if answer.compare and not named else ()
    return render(answer, chosen=named, compared=compared)


def read(words: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    """key=value words as a mapping. Raises UsageError: no such key, one given twice, or no `=`."""
    found: dict[str, str] = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not value:
            raise UsageError(f"'{word}' is not key=value; keys here: {', '.join(keys) or 'none'}")
        _one_of(dict.fromkeys(keys), key, "key", ", ".join(keys) or "none")
        if key in found:
            raise UsageError(f"{key}= is given twice: {found[key]} and {value}")
        found[key] = value
    return found


def numbers(text: Mapping[str, str]) -> dict:
    """What an answer takes: numbers, and the machine that gpus, gpu, mfu and price make up."""
    given: dict = {}
    for key in text.keys() - {"law", "fits", "gpu"}:
        try:
            given[key] = parse(text[key])
        except ValueError as error:
            raise UsageError(f"{key}={text[key]}: {error}") from None
    given.setdefault("cost", FLOPS_PER_PARAM)
    if "mfu" in given and given["mfu"] > 1:
        raise UsageError(f"mfu={text['mfu']}: a share of the peak lies between 0 and 1 (40% or 0.4)")
    if "epochs" in given and given["epochs"] < 1:
        raise UsageError(f"epochs={text['epochs']}: one pass at least")
    machine = {key: given.pop(key) for key in ("gpus", "mfu", "price") if key in given}
    if "days" in given:
        given["duration"] = given.pop("days")
    if machine or "gpu" in text:
        if "gpus" not in machine or "gpu" not in text:
            raise UsageError("a machine is gpus=NUMBER and gpu=NAME, for example gpus=100 gpu=a100")
        chip = _one_of(ACCELERATORS, text["gpu"].lower(), "gpu", ", ".join(ACCELERATORS))
        given["machine"] = Machine(chip, machine["gpus"], machine.get("mfu", USUAL_MFU), machine.get("price"))
    return given


def choose(question: Question, text: Mapping[str, str]) -> Known:
    """The law that answers: of the report where fits= names one, else a published one."""
    if "fits" not in text:
        return _one_of(LAWS, text.get("law", question.default), "published law", ", ".join(LAWS))
    laws = read_laws(Path(text["fits"]).expanduser())
    return _one_of(laws, text.get("law", next(iter(laws))), f"law in {text['fits']}", ", ".join(laws))


def _one_of(choices: Mapping, name: str, kind: str, listed: str):
    if name in choices:
        return choices[name]
    near = difflib.get_close_matches(name, choices, 1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise UsageError(f"no {kind} '{name}'.{hint} There are: {listed}")


# --- text -----------------------------------------------------------------------------------------


def render(answer: Answer, *, chosen: bool, compared: Table = ()) -> str:
    """The answer, warnings, tables, then the law, its source, what is assumed, and the interval."""
    law = answer.law
    blocks = ["\n".join(textwrap.fill(sentence, WIDTH) for sentence in answer.says)]
    beyond = answers.outside(law, answer.runs) if law else ()
    warnings = [f"extrapolation: {'; '.join(beyond)}"] if beyond else []
    warnings += [law.caution] if law and law.caution else []
    if warnings:
        blocks.append("\n".join(_item("Warning", warning) for warning in warnings))
    if answer.table:
        blocks.append(_table(answer.table))
    if compared:
        blocks.append(f"The other published laws say, each counting N and C its own way:\n{_table(compared)}")
    items = []
    if law:
        items += [
            _item("Law", law.name if chosen else f"{law.name} (the default; law= or fits= for another)"),
            _item("", law.equation),
            _item("", ", ".join(f"{name} = {value:.6g}" for name, value in law.constants.items())),
            _item("Source", law.source),
            _item("N", law.counts),
            _item("Tokens", law.corpus),
            *(_item("Note", note) for note in law.notes),
        ]
    items += [_item("Assuming" if not number else "", text) for number, text in enumerate(answer.assumes)]
    if law:
        items.append(_item("Interval", answer.interval or law.interval))
    return "\n\n".join([*blocks, "\n".join(items)])


def _item(label: str, text: str) -> str:
    return textwrap.fill(text, WIDTH, initial_indent=f"{label:<10}", subsequent_indent=" " * 10)


def _table(rows: Table) -> str:
    """The head and rows in columns, all but the first set to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows
    ]
    return textwrap.indent("\n".join(lines), "  ")


def usage() -> str:
    lines = ["python -m analysis.ask QUESTION key=value ...", ""]
    for question in QUESTIONS.values():
        lines += [f"{question.name:<10}{question.asks}", f"{'':<10}{question.name} {question.example}"]
        lines += [f"{'':<10}keys: {', '.join(question.keys)}"]
    lines += [f"{'laws':<10}The published laws with their sources; laws fits=DIR: those of a report"]
    lines += [f"{'gpus':<10}The accelerators and their peak", ""]
    lines += [_item(f"{key}=", text) for key, text in ABOUT.items()]
    return "\n".join([*lines, "", "Numbers: 10B, 1.4T, 5.76e23, 70e9, 40%."])


def list_laws(laws: Mapping[str, Known]) -> str:
    blocks, said = [], set()
    for law in laws.values():
        names = {"params": "N", "tokens": "D", "flops": "C"}
        spans = [
            f"{names[key]} {_span(low, high, power if key == 'flops' else count)}"
            for key, (low, high) in (law.fitted or {}).items()
        ]
        blocks.append(
            "\n".join(
                [_item("Law", law.name), _item("", law.equation), _item("Source", law.source)]
                + [_item("N", law.counts), _item("Tokens", law.corpus)]
                + [_item("Fitted", ", ".join(spans) or "range not known"), _item("Interval", law.interval)]
                + [_item("Note", note) for note in (law.caution, *law.notes) if note and note not in said]
            )
        )
        said.update((law.caution, *law.notes))
    return "\n\n".join(blocks)


def _span(low: float | None, high: float | None, shown: Callable[[float], str]) -> str:
    return f"up to {shown(high)}" if low is None else f"{shown(low)} to {shown(high)}"


def list_gpus() -> str:
    rows = (
        ("name", "TFLOP/s", ""),
        *((chip.name, f"{chip.peak / 1e12:g}", "") for chip in ACCELERATORS.values()),
    )
    lines = _table(rows).splitlines()
    sources = ("source", *(chip.source for chip in ACCELERATORS.values()))
    head = "At most, dense matrix products of 16-bit numbers:"
    return "\n".join([head, *(f"{line}  {source}" for line, source in zip(lines, sources, strict=True))])


if __name__ == "__main__":
    sys.exit(main())
