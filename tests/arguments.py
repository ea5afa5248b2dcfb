"""What holds for the arguments of every command line."""

import argparse

MEANINGLESS = ("nan", "inf", "-1", "1e999", "-1e-9", "x", "", str(10**20), "0x1", "1,,2")


def refuse_numbers_without_meaning(main, parser, name, capsys):
    """Assert that every argument that is a number refuses what has no meaning, in one line of `name` with status 2."""
    found = list(_numeric(parser))
    for line, argument in found:
        (option,) = argument.option_strings
        for value in MEANINGLESS:
            if value == str(10**20) and option == "--temperature":
                continue  # as good as uniform
            assert main([*line, f"{option}={value}"]) == 2
            (printed,) = capsys.readouterr().err.splitlines()
            assert printed.startswith(f"{name}: {option}=") and "; use " in printed, (line, printed)
    return found


def _numeric(parser, line=()):
    """Yield (words that lead to it, argument) for all arguments of a parser that are numbers."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                yield from _numeric(subparser, (*line, name))
        elif isinstance(action.default, int | float) and not isinstance(action.default, bool):
            yield line, action
        elif getattr(action.type, "__module__", None) in ("builtins", "stagjax.cli"):
            yield line, action
