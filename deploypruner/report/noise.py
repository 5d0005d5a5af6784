"""What casts doubt on the times, in one line; the details are folded."""

from __future__ import annotations

import re

from deploypruner.report.document import Report


def noise_sentence(report: Report) -> str:
    """The first remark in short, the noise floor, and where the rest is; "" where the machine was quiet."""
    if not report.noise:
        return ""
    first = re.split(r"[:;(]", report.noise[0], maxsplit=1)[0].strip()
    floor = report.settings.get("noise_floor")
    called = f"; differences below {100 * floor:.1f} % are not called" if isinstance(floor, float) else ""
    details = f"{len(report.noise)} remark{'' if len(report.noise) == 1 else 's'}"
    return f"{first}{called}; {details} in report.html"
