"""How the help looks: examples first, options in panels, the usual ones by default and the rest with --help-all."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import click

from deploypruner.errors import RecipeError, nearest
from deploypruner.recipe.option import GROUPS

# So few more options are shown at once: a second screen for two of them would be a detour.
_FEW = 5
_ALL = "deploypruner.help_all"
# Where the options stand that show this text.
_HELP = "Help"
_DEFAULT = "  [default: "
# Where lines are not to break; a plain one is printed.
_HARD_SPACE = "\N{NO-BREAK SPACE}"


class Grouped(click.Option):
    """An option that the help shows under the title of its group.

    Args:
        group: One of `recipe.option.GROUPS`.
        basic: Is it in the short help?
    """

    def __init__(self, *flags: Any, group: str, basic: bool = True, **about: Any) -> None:
        super().__init__(*flags, **about)
        self.group = group
        self.basic = basic

    def get_help_extra(self, ctx: click.Context) -> Any:
        """What click adds to the help; the range is said in the help itself where it is not obvious."""
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)
        return extra


class GroupedCommand(click.Command):
    """A command whose help begins with examples and lists its options in groups.

    Args:
        examples: Command lines that work, each with what it is for; "" where there is but one.
    """

    def __init__(self, *arguments: Any, examples: Mapping[str, str], **about: Any) -> None:
        super().__init__(*arguments, **about)
        self.examples = dict(examples)
        self.params.append(
            click.Option(
                ["--help-all"],
                is_flag=True,
                is_eager=True,
                expose_value=False,
                callback=_show_all,
                hidden=not self.more(),
                help="Show every option, explained in full, and exit.",
            )
        )

    def more(self) -> int:
        """How many options only --help-all shows."""
        rare = sum(isinstance(parameter, Grouped) and not parameter.basic for parameter in self.params)
        return rare if rare >= _FEW else 0

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What it does in one paragraph, the examples, and what else there is to say."""
        first, rest = _parted(self)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(first)
        write_examples(formatter, self.examples)
        if rest:
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(rest)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section for every group, in their order."""
        short = bool(self.more()) and not ctx.meta.get(_ALL)
        rows: dict[str, list[tuple[str, str]]] = {group: [] for group in (*GROUPS, _HELP)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None and not (short and not getattr(parameter, "basic", True)):
                names, text = record
                text = _unbroken(_short(text) if short else text)
                rows[getattr(parameter, "group", _HELP)].append((names, text))
        for group, found in rows.items():
            if found:
                with formatter.section(group):
                    formatter.write_dl(found)
        if short:
            formatter.write_paragraph()
            more = f"{self.more()} more options, and all of them in full"
            formatter.write_text(f"{more}: {ctx.command_path} --help-all")

    def get_help(self, ctx: click.Context) -> str:
        """All of it."""
        return super().get_help(ctx).replace(_HARD_SPACE, " ")


class CommandList(click.Group):
    """The commands in panels, in the order a user meets them; the nearest name is offered for a mistyped one.

    Args:
        examples: As of `GroupedCommand`.
        panels: Title -> names of commands.
    """

    def __init__(
        self, *arguments: Any, examples: Mapping[str, str], panels: Mapping[str, Sequence[str]], **about: Any
    ) -> None:
        super().__init__(*arguments, **about)
        self.examples = dict(examples)
        self.panels = {title: tuple(names) for title, names in panels.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, panel by panel."""
        return [name for names in self.panels.values() for name in names]

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does it.

        Raises:
            RecipeError: There is no such command.
        """
        if args and not ctx.resilient_parsing and not args[0].startswith("-") and args[0] not in self.commands:
            raise RecipeError(f"no command called '{args[0]}'", hint=nearest(args[0], self.commands))
        return super().resolve_command(ctx, args)

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What the program is for, then the examples."""
        super().format_help_text(ctx, formatter)
        write_examples(formatter, self.examples)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, then the options of them all."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section for every panel."""
        longest = max(map(len, self.commands))
        for title, names in self.panels.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:{longest}}", _short(_parted(self.commands[name])[0])) for name in names])


def write_examples(formatter: click.HelpFormatter, examples: Mapping[str, str]) -> None:
    """Command lines that work as they stand, each below what it is for; none is broken, so that it can be pasted."""
    with formatter.section("Examples" if len(examples) > 1 else "Example"):
        for line, purpose in examples.items():
            for text in (f"# {purpose}", line) if purpose else (line,):
                formatter.write(f"{'':{formatter.current_indent}}{text}\n")


def _show_all(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        click.echo(ctx.get_help(), color=ctx.color)
        ctx.exit()


def _parted(command: click.Command) -> tuple[str, str]:
    """The first paragraph of the help, and the others."""
    first, _, rest = inspect.cleandoc(command.help or "").partition("\n\n")
    return first, rest


def _short(text: str) -> str:
    """The first part of the sentence, and the default."""
    said, mark, default = text.partition(_DEFAULT)
    return re.split(r"; |\. (?=[A-Z])", said)[0].rstrip(". ") + mark + default


def _unbroken(text: str) -> str:
    """With the default on one line."""
    said, mark, default = text.partition(_DEFAULT)
    return f"{said}  {(mark + default).strip().replace(' ', _HARD_SPACE)}" if mark else text
