"""`python -m deploypruner` is `deploypruner`."""

from deploypruner.cli.main import run

run()
