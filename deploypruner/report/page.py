"""What all pages are made with: files of this package, templates, and text as it is set on a page."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

import jinja2
from markupsafe import Markup, escape

# A number and its sign or unit, and "n = 360", stay on one line.
_TOGETHER = re.compile(r"(?<=±) | (?=%|ms\b)|(?<=\bn) (?== )|(?<=\bn =) ")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
_BREAKS = Markup("<wbr>")


def resource(name: str) -> str:
    """Text of a file that lies beside this one."""
    return resources.files("deploypruner.report").joinpath(name).read_text(encoding="utf-8")


@cache
def template(name: str) -> jinja2.Template:
    """A page; every value is escaped, and one that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(resource),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(typeset=typeset, words=words, breakable=breakable)
    return environment.get_template(name)


def style() -> Markup:
    """The style sheet of all pages."""
    return Markup(resource("style.css"))


def typeset(sentence: str) -> Markup:
    """A sentence of ours with arrows; numbers are not torn from their units, nor options at hyphens."""
    escaped = str(escape(sentence)).replace("-&gt;", "\N{RIGHTWARDS ARROW}")
    whole = _OPTION.sub(r'<span class="option">\g<0></span>', escaped)
    return Markup(_TOGETHER.sub("\N{NO-BREAK SPACE}", whole))


def words(command: str) -> Markup:
    """A command that a line may be broken in between its words only: not behind the hyphens of an option."""
    return Markup(" ").join(Markup("<span>{}</span>").format(word) for word in command.split(" "))


def breakable(name: str) -> Markup:
    """A name that a line may be broken in between its words only, and that is copied whole."""
    escaped = str(escape(name))
    for letter in "._/:":
        escaped = escaped.replace(letter, f"{letter}{_BREAKS}")
    return Markup(escaped)
