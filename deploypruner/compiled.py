"""What `compile` gives back in Python: the folder, its report, and the pruned module."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from deploypruner.channels.plan import Plan
from deploypruner.notebook import html_page, html_table
from deploypruner.records import Row
from deploypruner.report import Report, headline, units


@dataclass(frozen=True)
class CompiledBuild:
    """Result of `compile`.

    Args:
        folder: Folder with the artifacts.
        report: Contents of report.json.
        module: Pruned and recovered module, in eval mode.
        plan: Plan that was carried out: what was kept.
    """

    folder: Path
    report: Report
    module: nn.Module
    plan: Plan

    def __repr__(self) -> str:
        return f"CompiledBuild({str(self.folder)!r}: {headline(self.report).sentence})"

    def _repr_html_(self) -> str:
        """In a notebook: the result, every row, and the whole report, folded."""
        rows = [
            (
                row.name,
                row.runtime,
                units.accuracy_cell(row) if row.accuracy is not None else units.agreement_cell(row, self.rows),
                units.significant(row.median_ms),
                units.ratio_with_interval(row.ratio, row.ratio_ci),
                row.verdict,
                units.scaled(row.bytes, "B"),
            )
            for row in self.rows
        ]
        first = self.rows[0]
        judged = first.metric.name if first.accuracy is not None else "agreement"
        heads = ("artifact", "runtime", judged, "median, ms", "speed-up", "verdict", "size")
        page = self.folder / "report.html"
        title = f"{headline(self.report).sentence}. {page} has the pictures and the proof."
        inline = html_page("The report", page.read_text("utf-8")) if page.is_file() else ""
        return html_table(title, heads, rows) + inline

    @property
    def rows(self) -> tuple[Row, ...]:
        """Measured rows, the dense baseline of each runtime first."""
        return self.report.rows
