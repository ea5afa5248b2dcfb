"""The line that every worker runs, checked before machines are asked for."""

import itertools
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Sequence

from stagjax.errors import UserError
from tpu import source


def check_shipped(
    command: Sequence[str], clone: pathlib.Path, devices: int, slices: int, say: Callable[[str], None] = print
) -> None:
    """Check a line against what a worker gets of a clone; arguments and errors as `check`."""
    if _words(command) is None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        archive = pathlib.Path(scratch) / "source.tar.gz"
        source.pack(clone, archive)
        shipped = pathlib.Path(scratch) / "source"
        with tarfile.open(archive) as tar:
            tar.extractall(shipped, filter="tar")
        check(command, shipped, devices, slices, say)


def check(
    command: Sequence[str], folder: pathlib.Path, devices: int, slices: int, say: Callable[[str], None] = print
) -> None:
    """Let stagjax check its own line, in the directory where it is to run; what is not stagjax is not checked.

    Args:
      command: the line.
      folder: with the clone.
      devices: of all workers.
      slices: of TPUs.
      say: takes a line for the user, where nothing here can check it.

    Raises:
      UserError: the line would be refused there.
    """
    words = _words(command)
    if words is None:
        return
    checker = [sys.executable, "-m", "stagjax.cli.elsewhere", str(devices), str(slices), *words]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(checker, cwd=folder, env=environment, capture_output=True, text=True, errors="replace")
    said = ([""] + done.stderr.strip().splitlines())[-1]
    if done.returncode == 2:
        refusal = said.removeprefix("stagjax: ")
        raise UserError(f"what follows -- would be refused by every worker: {refusal} (--unchecked skips this check)")
    if done.returncode:
        say(f"note: what follows -- is not checked, because stagjax does not run here: {said}")
    for word in words:
        name, _, where = word.partition("=")
        if name == "--workdir" and not where.startswith("gs://"):
            say(f"note: {word} lies on the workers' own disks and is lost with them; gs://BUCKET/RUN outlives them")


def _words(command: Sequence[str]) -> list[str] | None:
    """Return what follows `stagjax` or `python -m stagjax`, also behind `env`; None where something else runs."""
    if command[0] == "env":
        command = list(itertools.dropwhile(lambda word: word == "env" or "=" in word, command)) or ["env"]
    if pathlib.PurePath(command[0]).name == "stagjax":
        return list(command[1:])
    return list(command[3:]) if list(command[1:3]) == ["-m", "stagjax"] else None
