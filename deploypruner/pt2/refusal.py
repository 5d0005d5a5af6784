"""What a rule says about a part of a file that it does not accept."""

from __future__ import annotations

FOREIGN_HINT = (
    "a .pt2 file is read as data and never run; where you trust this one, load it in your own code: "
    "dp.compile(torch.export.load('{path}'), example_inputs, ...)"
)
AGAIN_HINT = "export and save it again with torch.export.save"


class Refusal(Exception):
    """Something in an archive that is not accepted.

    Args:
        said: What and why, as the end of a sentence that begins with its place.
        hint: One thing to do; `{path}` is the file.
    """

    def __init__(self, said: str, hint: str = FOREIGN_HINT) -> None:
        super().__init__(said)
        self.said, self.hint = said, hint
        self.place: list[str] = []

    def at(self, name: str) -> Refusal:
        """The same, seen from one level further out."""
        self.place.append(name)
        return self

    def text(self) -> str:
        """Place and reason: "graph_module.graph.nodes[3].target: ..."."""
        place = ""
        for name in reversed(self.place):
            place += name if name.startswith("[") or not place else f".{name}"
        return f"{place}: {self.said}" if place else self.said


def shown(text: object) -> str:
    """A part of the file as a message may print it: one short line, nothing a terminal would obey."""
    line = ascii(str(text))[1:-1]
    return f"'{line if len(line) <= 80 else line[:77] + '...'}'"
