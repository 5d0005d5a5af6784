"""Masked = removed: the dense graph with everything removed made to count for nothing, beside the smaller one."""
