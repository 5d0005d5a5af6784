"""The report of a build: one record, and its forms for programs (JSON), terminals (text) and people (HTML)."""

from __future__ import annotations

import json
from pathlib import Path

from deploypruner.reading import read_json, report_file
from deploypruner.report.columns import table_rows
from deploypruner.report.document import LayerWidth, Report, StageTime, from_json, to_json
from deploypruner.report.headline import Headline, headline
from deploypruner.report.html import render_html
from deploypruner.report.ship import loaded_from
from deploypruner.report.table import table

__all__ = [
    "Headline",
    "LayerWidth",
    "Report",
    "StageTime",
    "from_json",
    "headline",
    "read_report",
    "render_html",
    "render_json",
    "table",
    "table_rows",
    "to_json",
    "write_report_json",
]


def render_json(report: Report) -> str:
    """Return the text of report.json."""
    return json.dumps(to_json(report), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_report_json(report: Report, path: str | Path) -> None:
    """Write report.json; not atomic, a caller that needs that writes `render_json` itself."""
    Path(path).write_text(render_json(report), encoding="utf-8")


def read_report(path: str | Path) -> Report:
    """Read a report.json, or the one inside a build folder; how its file is loaded follows a folder that was moved.

    Raises:
        InputError: Missing, not JSON, another schema version, or not a report.
    """
    file = report_file(Path(path))
    data = read_json(file, what="report", hint=_HINT_CORRUPT)
    return loaded_from(file.parent, from_json(data, source=str(file)))


_HINT_CORRUPT = "the file is damaged or was not written by deploypruner; rerun the build with `--resume`"
