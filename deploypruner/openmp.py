"""How the threads of torch's OpenMP wait for one another."""

# How often a waiting thread of torch looks again before it sleeps; see `cli.main`.
SPINNING = ("GOMP_SPINCOUNT", "1000")
