"""Verbs that go by another name since version 0.2: the old one answers for one version more, and says the new one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import typer

from offprint.cli.console import errors


def run(words: Sequence[str]) -> None:
    """Run another verb in this process."""
    from offprint.cli.main import app

    typer.main.get_command(app).main(args=list(words), standalone_mode=False)


def moved(old: str, words: Sequence[str]) -> None:
    """Say how the command is written now, and run it."""
    shown = " ".join(f'"{w}"' if " " in w or not w else w for w in words)
    errors.print(
        f"'offprint {old}' is now: offprint {shown}", style="yellow", highlight=False, markup=False, soft_wrap=True
    )
    run(words)


def renamed(words: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The words with some options called otherwise."""
    found = []
    for word in words:
        name, sign, value = word.partition("=")
        found.append(names[name] + sign + value if name in names else word)
    return found


def has(words: Sequence[str], *names: str) -> bool:
    """Whether one of these options is among the words."""
    return any(word.partition("=")[0] in names for word in words)


def positional(words: Sequence[str], old: str, what: str) -> tuple[str, list[str]]:
    """The first word, which is no option, and the others."""
    if not words or words[0].startswith("-"):
        raise typer.BadParameter(f"offprint {old} takes {what} first")
    return words[0], list(words[1:])
