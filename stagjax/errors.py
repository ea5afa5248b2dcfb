"""The ways in which a run ends other than well; the command line turns each into one line and an exit status."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: the message names the field, its value, the rule and the remedy (exit status 2)."""


class DataError(UserError):
    """Data of one benchmark that is missing or malformed: one line names the file, its line and the field.

    Whoever runs several benchmarks goes on with the others.
    """


class RunFailed(RuntimeError):
    """A run that cannot go on (non-finite loss, full disk); the message names the last good checkpoint (status 3)."""


class Preempted(RuntimeError):
    """The run was told to stop, has saved, and should be started again (status 75)."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that does not exist: it lists the known ones and suggests the nearest.

    Args:
      kind: what the name stands for, e.g. "config field".
      name: the name as the user wrote it.
      known: every valid name.
    """
    known = sorted(known)
    # What was cut short is nearer than what merely has similar letters.
    nearest = [full for full in known if name and full.startswith(name)]
    nearest = nearest or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return UserError(f"unknown {kind} {name!r}; {hint}known: {', '.join(known) or 'none'}")
