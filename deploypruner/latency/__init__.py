"""Predicted milliseconds of any plan of a traced model: layers timed inside probe networks on the real runtime."""
