"""Pruning spaces: a population of recipes of equal cost, each realised and trained, and what the population teaches.

common stages ─► recipes of one cost ─► trials in worker processes ─► analysis ─► refined search ─► winner
load trace score space.py               trial.py workers.py store.py  analysis.py refine.py         recipe_file.py

space.py        how recipes are sampled at a fixed share of MACs or of predicted milliseconds
speed.py        predicted milliseconds of any recipe
trial.py        one recipe realised, recovered and judged, by the functions that `compile` uses; its identity
workers.py      processes of this machine, one for each trial
on_ray.py       tasks of Ray in their place, on this machine or a cluster; shipped.py is what they are sent
store.py        sweep.sqlite: every trial, planned, finished or failed
request.py      what is asked, and the folder for it
run.py          the driver
analysis.py     distributions, the computation budget per parameter and its optimum
conjectures.py  the paper's four, with the evidence for or against them
refine.py       what was learnt as a narrower space, sampled cheaply
recipe_file.py  winner.toml, for `compile --recipe`
page.py         sweep.html and what the terminal shows; pictures.py draws
status.py       how far a sweep is, from another terminal
beside.py       sweeps at other costs
call.py         `dp.sweep`

Source: He et al., "Network Pruning Spaces", arXiv:2304.09453, of which the abstract and a summary were read. What is
the paper's and what is ours is said where it is done.
"""
