"""What must be the same in all processes, and a sentence about what is not."""

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence

from stagjax import __version__

_SHOWN = 5
_PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "orbax-checkpoint")

# Name of a fact, e.g. "jax" or "training.seed", to its value as text.
Facts = Mapping[str, str]


def versions() -> dict[str, str]:
    """Return the versions of what computes; a package that is not installed is "missing"."""
    found = {"stagjax": __version__, "Python": ".".join(platform.python_version_tuple()[:2])}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def flat(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return nested mappings as facts: {"training": {"seed": 0}} is {"training.seed": "0"}."""
    facts = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            facts |= flat(value, f"{prefix}{name}.")
        else:
            facts[f"{prefix}{name}"] = repr(value)
    return facts


def disagreement(facts: Mapping[int, Facts], names: Mapping[int, str]) -> str | None:
    """Return which facts differ and who says what, or None.

    Args:
      facts: of each process, by its id.
      names: of each process, e.g. "process 1 on host-b".
    """
    differing = []
    for fact in sorted({fact for known in facts.values() for fact in known}):
        said: dict[str, list[int]] = {}
        for process, known in sorted(facts.items()):
            said.setdefault(known.get(fact, "missing"), []).append(process)
        if len(said) > 1:
            values = [f"{value} on {_listed(processes, names)}" for value, processes in said.items()]
            differing.append(f"{fact}: {', '.join(values)}")
    if not differing:
        return None
    more = [f"and {len(differing) - _SHOWN} more"] if len(differing) > _SHOWN else []
    return "; ".join([*differing[:_SHOWN], *more])


def ranges(numbers: Sequence[int]) -> str:
    """Return ascending numbers with their runs shortened: "0-3, 6"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _listed(processes: Sequence[int], names: Mapping[int, str]) -> str:
    return names[processes[0]] if len(processes) == 1 else f"processes {ranges(processes)}"
