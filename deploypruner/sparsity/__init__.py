"""Zeros in layers that stay: their patterns, the masks that training moves, and where they are worth their time."""
