"""The dependency graph: which channels of a model must be removed together, and which cannot be removed."""

from deploypruner.graph.dependency import Graph, Keep
from deploypruner.graph.front_ends import trace

__all__ = ["Graph", "Keep", "trace"]
