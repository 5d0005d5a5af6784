"""`python -m deploypruner` is `deploypruner`."""

from deploypruner.cli import main

main()
