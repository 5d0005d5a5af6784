"""Reading .pt2 files without running anything in them.

torch.export.load unpickles what an archive holds, evaluates its size expressions and guards, calls whatever its
nodes name, and puts its names into source code that it runs. So nothing here hands it an archive: members are read
one by one, every text has a rule (`schema`), and torch's deserialiser gets records and tensors made of what passed.
"""

from deploypruner.pt2.read import quiet, read_program

__all__ = ["quiet", "read_program"]
