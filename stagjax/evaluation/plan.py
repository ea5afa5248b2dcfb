"""A sweep as plain data: which checkpoints are asked which tasks, with how many examples, decoded in which modes."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from stagjax.decoding.placement import PARALLEL
from stagjax.errors import UserError, unknown
from stagjax.evaluation.questions import parse_tasks
from stagjax.evaluation.results import Row, make_row
from stagjax.evaluation.scoring import ANYWHERE, Settings
from stagjax.evaluation.spans import DISJOINT
from stagjax.evaluation.subjects import ALL, subjects_of
from stagjax.experiment import call_file
from stagjax.rules import COUNT, COUNT_OR_NONE, SEED, TEMPERATURE


@dataclasses.dataclass(frozen=True)
class Run:
    """A run whose checkpoints are evaluated.

    Attributes:
      path: of its workdir, or of an export.
      name: in tables; by default the directory's.
      checkpoints: "best", "latest", steps, or "all"; None is the best, or the latest if none was validated.
    """

    path: str
    name: str = ""
    checkpoints: tuple[str | int | None, ...] = (None,)


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that a sweep asks; see experiments/sweep.py.

    Attributes:
      runs: in the order of the table.
      tasks: benchmarks or groups of them, each also as "NAME@SHOTS".
      shots: of tasks named without; None is each benchmark's default.
      decoding: modes; those that a model has not are left out.
      data_dir: of the benchmarks' files; None is the environment's STAGJAX_DATA_DIR, or data.
      limit: documents of each task, the first ones; None is all.
      samples: answers to each generation request.
      temperature: of generation, 0 is greedy.
      seed: of sampled answers.
      documents: how long documents are cut, "disjoint" or "overlap".
      stop: where stop strings count, "anywhere" or "after_text".
      bench: directories (or results.json) of `stagjax bench decode`, whose latencies are joined by the models' shapes.
    """

    runs: tuple[Run, ...]
    tasks: tuple[str, ...]
    shots: tuple[int | None, ...] = (None,)
    decoding: tuple[str, ...] = (PARALLEL,)
    data_dir: str | None = None
    limit: int | None = None
    samples: int = 1
    temperature: float = 0.0
    seed: int = 0
    documents: str = DISJOINT
    stop: str = ANYWHERE
    bench: tuple[str, ...] = ()

    def rows(self) -> tuple[list[Row], list[str]]:
        """Return the lines of the table, and notes on what is left out; reads the checkpoints' metadata.

        Raises:
          UserError: an unknown task or mode, or no such checkpoint.
          RunFailed: a checkpoint is damaged.
        """
        settings = [Settings(mode, self.documents, self.stop, self.seed) for mode in self.decoding]
        for one in settings:
            one.check()
        asked = [(shots, parse_tasks(self.tasks, shots)) for shots in self.shots]
        options = {"limit": self.limit, "samples": self.samples, "temperature": self.temperature}
        rows, without = [], []
        for run in self.runs:
            for subject in subjects_of(run.name, run.path, run.checkpoints):
                for one in settings:
                    if subject.can_decode(one.decoding):
                        rows += [make_row(subject, one, shots, tasks, **options) for shots, tasks in asked]
                    else:
                        without.append(f"{run.name} has no {one.decoding} decoding")
        return rows, list(dict.fromkeys(without))


def load_plan(spec: str) -> Plan:
    """Load a sweep.

    Args:
      spec: "FILE.py[:ARG]", which defines `get_sweep(arg)`, or "FILE.json".

    Raises:
      UserError: no such file, or what it says is no sweep.
    """
    file = pathlib.Path(spec.partition(":")[0])
    if file.suffix != ".json":
        return from_dict(call_file(spec, "get_sweep", "experiments/sweep.py, or a JSON file"))
    try:
        return from_dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"--config={spec} is no JSON: {error}; correct it") from error


def from_dict(tree: Any) -> Plan:
    """Return the plan that plain data describes.

    Raises:
      UserError: a field that does not exist, is missing, or has a wrong type.
    """
    fields = _checked("sweep", tree, Plan)
    for name in ("runs", "tasks", "shots", "decoding", "bench"):
        if name in fields:
            fields[name] = _several(name, fields[name])
    fields["runs"] = tuple(_run(number, run) for number, run in enumerate(fields["runs"]))
    _check_types(fields)
    names = [run.name for run in fields["runs"]]
    if len(set(names)) < len(names):
        raise UserError(f"two runs have one name: {', '.join(names)}; give each another name")
    return Plan(**fields)


def _run(number: int, run: Any) -> Run:
    fields = _checked(f"runs[{number}]", {"path": run} if isinstance(run, str) else run, Run)
    if not isinstance(fields["path"], str) or not isinstance(fields.get("name", ""), str):
        raise UserError(f"runs[{number}]: path and name have to be texts")
    fields["name"] = fields.get("name") or pathlib.Path(fields["path"]).resolve().name
    fields["checkpoints"] = _several(f"runs[{number}].checkpoints", fields.get("checkpoints", (None,)))
    for checkpoint in fields["checkpoints"]:
        if checkpoint not in (None, "best", "latest", ALL) and not _is_integer(checkpoint):
            raise UserError(
                f"runs[{number}].checkpoints has {checkpoint!r}; use best, latest, all, or steps as numbers"
            )
    return Run(**fields)


def _checked(place: str, tree: Any, of: type) -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        raise UserError(f"{place} is {tree!r}; it has to be a table of fields, see experiments/sweep.py")
    known = {field.name: field for field in dataclasses.fields(of)}
    for name in tree:
        if name not in known:
            raise unknown(f"field of {place}", str(name), known)
    for name, field in known.items():
        if field.default is dataclasses.MISSING and name not in tree:
            raise UserError(f"{place} lacks {name!r}; see experiments/sweep.py")
    return dict(tree)


def _several(name: str, value: Any) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not value:
        if name == "bench" and value in ((), []):
            return ()
        raise UserError(f"{name}={value!r} has to be a list with one entry or more")
    return tuple(value)


def _check_types(fields: Mapping[str, Any]) -> None:
    texts = lambda values: all(isinstance(value, str) for value in values)
    rules = {
        "tasks": (texts, "a list of names"),
        "decoding": (texts, "a list of modes"),
        "bench": (texts, "a list of files"),
        "shots": (lambda v: all(s is None or not COUNT_OR_NONE.broken(s) for s in v), "a list of numbers, 0 or more"),
        "data_dir": (lambda v: v is None or (isinstance(v, str) and v), "a directory"),
        "documents": (lambda v: isinstance(v, str), "a text"),
        "stop": (lambda v: isinstance(v, str), "a text"),
    }
    for name, (holds, rule) in rules.items():
        if name in fields and not holds(fields[name]):
            shown = list(fields[name]) if isinstance(fields[name], tuple) else fields[name]
            raise UserError(f"{name}={shown!r} has to be {rule}")
    numbers = {"limit": COUNT, "samples": COUNT, "seed": SEED, "temperature": TEMPERATURE}
    for name, number in numbers.items():
        if name in fields and (name, fields[name]) != ("limit", None):
            number.check(name, fields[name])


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
