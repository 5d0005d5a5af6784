"""The README's picture: accuracy after the same recovery, against measured speed-up, from results/equal_latency.json.

python -m benchmarks.picture
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import click
from markupsafe import Markup

from benchmarks.equal_latency import RESULTS
from benchmarks.kept import read
from benchmarks.tuning import OURS
from deploypruner.report.svg import line, text

PICTURE = Path(__file__).parents[1] / "docs" / "accuracy-at-latency.svg"
_NAMES = {OURS: "DeployPruner", "solver": "Taylor's sums, widths only", "macs": "multiply-adds"}
_LEFT, _RIGHT, _ROW, _TOP = 200.0, 690.0, 24.0, 34.0
_STYLE = """
svg { font: 13px system-ui, sans-serif; background: #fff }
text { fill: #333 } .title { font-weight: 600; fill: #111 } .faint { fill: #777; font-size: 11px }
.grid { stroke: #ddd } .dense { stroke: #999; stroke-dasharray: 4 3 } .ours { fill: #0b6e4f } .rival { fill: #b9c0c7 }
"""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=PICTURE, show_default=True)
def main(out: Path) -> None:
    """Draw every row of the results whose plans were trained."""
    parts, top = [], 8.0
    for key, row in read(RESULTS).items():
        trained = {name: plan for name, plan in row["plans"].items() if plan["runs"].get("short")}
        if OURS in trained:
            drawn, top = _row(key, row["dense"]["fp32"], trained, top)
            parts.append(drawn)
    svg = Markup('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 {:.0f}"><style>{}</style>{}</svg>\n')
    out.write_text(svg.format(top, Markup(_STYLE), Markup("").join(parts)))
    click.echo(out)


def _row(key: str, dense: float, plans: dict[str, Any], top: float) -> tuple[Markup, float]:
    found = {name: mean(run["fp32"] for run in plan["runs"]["short"].values()) for name, plan in plans.items()}
    low = 10 * (min(found.values()) // 10) - 10
    bottom = top + _TOP + _ROW * len(found)

    def x(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (value - low) / (100 - low)

    net, precision, asked = key.split()
    parts = [text("title", (8, top + 16), f"{net}, {precision}, {asked}: top-1 after the same short recovery")]
    for tick in range(int(low), 101, 10):
        parts += [line("grid", (x(tick), top + 26), (x(tick), bottom))]
        parts += [text("faint", (x(tick), bottom + 13), f"{tick} %", anchor="middle")]
    for number, name in enumerate(sorted(found, key=lambda n: -found[n])):
        y = top + _TOP + _ROW * number
        bar = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="15"/>')
        parts += [
            text("", (_LEFT - 8, y + 12), _NAMES.get(name, name.replace("-", " ")), anchor="end"),
            bar.format("ours" if name == OURS else "rival", _LEFT, y, x(found[name]) - _LEFT),
            text("", (x(found[name]) + 5, y + 12), f"{found[name]:.1f}  at {plans[name]['ratio']:.2f}x"),
        ]
    parts += [line("dense", (x(dense), top + 26), (x(dense), bottom))]
    parts += [text("faint", (_RIGHT + 8, top + 16), f"dashed: dense, {dense:.1f} %", anchor="end")]
    return Markup("").join(parts), bottom + 34


if __name__ == "__main__":
    main()
