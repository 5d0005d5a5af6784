"""The machine a model is measured on, this one or another: what runs there, and how it is reached.

`agent` and what it imports run there; they need Python 3.9 and nothing else. Nothing is imported here, so that the
agent starts at once.
"""
