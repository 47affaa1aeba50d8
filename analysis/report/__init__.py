"""The report of an analysis: what it says (headline, tables), what it shows (figures), how it looks."""

from analysis.report.page import write_report

__all__ = ["write_report"]
