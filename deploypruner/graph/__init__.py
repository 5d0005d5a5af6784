"""The dependency graph: which channels of a model must be removed together, and which cannot be removed.

A model becomes an ATen graph (`capture`). Then every index of every axis of every tensor gets a set of labels
(`labels`): numbers of the things that can be removed, called atoms. A weight begins with an atom for each row and
each column, and every operator says how the labels of its inputs become those of its output:

    conv.weight [4, 3, 3, 3]     axis 0: a b c d                 one atom for each output channel
            |
    conv    [N, 4, H, W]         axis 1: a b c d                 an output has its filter's label
            |
    x + y   with y: e f g h      axis 1: a=e b=f c=g d=h         added, so removed together: facts
            |
    flatten [N, 4 * H * W]       axis 1: a..a b..b c..c d..d     one label on all positions of a channel
            |
    linear.weight [10, 4 * H * W]
                                 axis 1: the same labels         these columns go with the channel

    groups:  {a b c d}  of conv axis 0, y's layer axis 0, linear axis 1
    frozen:  the 10 outputs of linear, "the model's output"

Labels that were made equal are one atom (`labels.union_find`); an index that carries several goes when one of them
does. Atoms that stand side by side everywhere are a group (`labels.groups`), whose channels are chosen among each
other. What a plan removes follows from the labels alone: the same rows for the smaller graph (`rewrite`), for its
cost (`labels.cost`) and for the user's own class (`rewrite.resize`). `execute` runs graphs, in float64 for the proof.
"""

from deploypruner.graph.capture.front_ends import trace
from deploypruner.graph.dependency import Graph, Keep

__all__ = ["Graph", "Keep", "trace"]
