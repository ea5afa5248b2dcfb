"""Every command and example of README, docs and the experiments' docstrings, and whether its words mean something.

A command is a line of a code block, or a piece of inline code, that begins with a program of `PROGRAMS`. Python is what
a block of Python says, or an indented one that begins with an import.
"""

import argparse
import ast
import contextlib
import io
import pathlib
import re
import runpy
import shlex
import sys
import textwrap
from collections.abc import Iterator
from typing import NamedTuple
from unittest import mock

ROOT = pathlib.Path(__file__).parent.parent
PROGRAMS = ("stagjax", "python", ".venv/bin/python", "pytest", "pip", "make")
# Programs of others: known by name, never started here.
FOREIGN = ("docker", "gcloud", "kubectl", "tensorboard", "tfds", "xpk", "zstd")
SHELL = ('F="', ". ", *(f"{name} " for name in FOREIGN))


class Found(NamedTuple):
    """A command or an example, and where it stands."""

    file: str
    line: int
    text: str
    kind: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text.splitlines()[0]}"


def texts() -> Iterator[tuple[str, int, str]]:
    """Yield (name, first line's number, text) of all that tells a user what to type."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "tpu/README.md"):
        yield str(path.relative_to(ROOT)), 1, path.read_text()
    for path in sorted((ROOT / "experiments").glob("*.py")):
        yield str(path.relative_to(ROOT)), 1, ast.get_docstring(ast.parse(path.read_text()), clean=False)


def everything() -> list[Found]:
    """Return all commands ("command"), mentions in the text ("inline") and examples ("python"), in order."""
    return [one for name, first, text in texts() for one in _of_text(name, first, text)]


def _of_text(name: str, first: int, text: str) -> Iterator[Found]:
    fence, block, begun = None, [], 0
    prose: list[tuple[int, str]] = []
    for number, line in enumerate([*text.split("\n"), ""], first):
        if line.startswith("```"):
            if fence is not None:
                yield from _of_block(name, begun + 1, block, fence == "python")
            fence, block, begun = (line[3:] if fence is None else None), [], number
        elif fence is not None:
            block.append(line)
        elif line.startswith("    ") or (block and not line):
            if not block:
                begun = number - 1
            block.append(line)
        else:
            if block:
                lines = textwrap.dedent("\n".join(block)).strip("\n").split("\n")
                yield from _of_block(name, begun + 1, lines, lines[0].startswith(("import ", "from ")))
            block = []
            if line:
                prose.append((number, line))
        if prose and (not line or line.startswith("```")):
            yield from _of_prose(name, prose)
            prose = []


def _of_prose(name: str, lines: list[tuple[int, str]]) -> Iterator[Found]:
    # Inline code may go on in the next line.
    for code in re.finditer(r"`([^`]+)`", text := "\n".join(line for _, line in lines)):
        words = code[1].replace("\n", " ")
        if words.split(" ")[0] in PROGRAMS and " " in words:
            yield Found(name, lines[text[: code.start()].count("\n")][0], words, "inline")


def _of_block(name: str, number: int, lines: list[str], is_python: bool) -> Iterator[Found]:
    if is_python:
        yield Found(name, number, "\n".join(lines), "python")
        return
    joined, variables = "", {}
    for line in lines:
        joined, whole = joined + line.removesuffix("\\"), not line.endswith("\\")
        if whole:
            text = re.sub(r"\s{2,}#.*", "", joined).strip() if "#" in joined else joined.strip()
            if joined.split(" ")[0] in PROGRAMS or text.startswith(SHELL):
                text = re.sub(r"\s+", " ", text)
                if named := re.fullmatch(r'(\w)="(.*)"', text):
                    variables[f"${named[1]}"] = named[2]
                    text = ""
                for variable, value in variables.items():
                    text = text.replace(variable, value)
                if text:
                    yield Found(name, number, text, "command")
            joined = ""
        number += 1


class Parsed(Exception):
    """A command's arguments mean something; nothing was run."""


def check(text: str) -> None:
    """Raise `SystemExit` or `UserError` or `AssertionError` where a command's words mean nothing.

    Flags, names of fields and of variants, files of this checkout, extras and targets have to be there.
    """
    for part in re.split(r" && |; ", text):
        with contextlib.redirect_stdout(io.StringIO()):  # what --help says
            try:
                _check_words(shlex.split(part))
            except SystemExit as end:
                if end.code:
                    raise


def _check_words(words: list[str]) -> None:
    program, rest = pathlib.Path(words[0]).name, words[1:]
    if program == "stagjax":
        _check_stagjax(rest)
    elif program == "pytest":
        _check_pytest(rest)
    elif program == "python" and rest[:2] == ["-m", "pytest"]:
        _check_pytest(rest[2:])
    elif program == "python" and rest[:2] == ["-m", "tpu"]:
        _check_tpu(rest[2:])
    elif program == "python" and rest[0] == "-m":
        assert (ROOT / (rest[1].replace(".", "/") + ".py")).exists(), rest[1]
    elif program == "python":
        _check_script(rest)
    elif program == "pip":
        extras = {name for text in rest for name in re.findall(r"\[(.*)\]", text)}
        known = re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE)
        assert {name for text in extras for name in text.split(",")} <= set(known), words
    elif program == "make":
        assert set(rest) <= set(re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.MULTILINE)), words
    elif program == "docker":
        assert all((ROOT / word.partition("=")[2]).exists() for word in rest if word.startswith("--file=")), words
    else:
        assert program in FOREIGN or words[0] == ".", words


def _check_stagjax(words: list[str]) -> None:
    from stagjax.cli import _overrides, build_parser
    from stagjax.evaluation.plan import load_plan
    from stagjax.experiment import load_config

    parser = build_parser(words[0])
    if not any(word.startswith("-") or set(word) & set("/.=") for word in words):
        words = [*words, "--help"]  # a mention
    if any(word.endswith("...") for word in words):
        return _check_flags(parser, words)
    args, rest = parser.parse_known_args(words)
    overrides = _overrides(rest)
    spec = getattr(args, "config", None) or ""
    if "VARIANT" in spec or "NAME" in spec or "..." in spec or not spec:
        return None
    if args.command == "sweep":
        load_plan(spec)
    elif "," in spec or ":" in spec:
        load_config(spec, [one for one in overrides if "DIR" not in one])
    else:
        assert (ROOT / spec).exists(), spec
    return None


def _check_flags(parser: argparse.ArgumentParser, words: list[str]) -> None:
    """Check the flags of an unfinished command."""
    known = flags(parser, words)
    for word in words:
        assert not word.startswith("--") or word.startswith("--config.") or word.partition("=")[0] in known, word


def flags(parser: argparse.ArgumentParser, words: list[str]) -> set[str]:
    """Return the flags of the command that the first words name, all commands' where there are none."""
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            chosen = [one for name, one in action.choices.items() if not words or name == words[0]]
            for one in chosen:
                found |= flags(one, words[1:])
    return found


def _check_tpu(words: list[str]) -> None:
    from tpu.cli import build_parser

    if not words or words[0] == "TARGET":
        return
    at = words.index("--") if "--" in words else len(words)
    build_parser().parse_args(words[:at])
    if words[at + 1 :]:
        _check_words(words[at + 1 :])


def _check_pytest(words: list[str]) -> None:
    for word in words:
        if word.startswith("tests"):
            assert (ROOT / word.partition("::")[0]).exists(), word
    assert not [word for word in words if word.startswith("-") and word != "-m"], words


def _check_script(words: list[str]) -> None:
    """Let a script of benchmarks/ read its arguments, and end it there."""
    path = ROOT / words[0]
    assert path.exists(), words[0]
    if "argparse" not in path.read_text():
        return
    parse = argparse.ArgumentParser.parse_args

    def parsed(self, *args):
        parse(self, *args)
        raise Parsed

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parsed), mock.patch.object(sys, "argv", words):
        with contextlib.suppress(Parsed):
            runpy.run_path(str(path), run_name="__main__")
