"""The frontier of a model: several budgets, one build each, everything shared that does not depend on the budget.

common stages ──► point 1 ─► point 2 ─► ... ──► one interleaved run of all artifacts ──► frontier.json .html .svg
load trace score   whole builds, see `build`

asked.py      the budgets as they were asked for, each with a name
run.py        the driver: it begins, goes through the points, refuses one without losing the others
measured.py   all artifacts in one run, with the accuracy that each build found
"""
