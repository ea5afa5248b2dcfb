"""What README, docs and messages tell a user to type means something; `make docs-check` runs it."""

import argparse
import ast
import importlib
import json
import re
import shlex

import pytest

from stagjax.cli import COMMANDS, build_parser
from stagjax.errors import UserError
from stagjax.tasks import catalog
from stagjax.tasks.benchmark import load
from stagjax.tasks.requests import Loglikelihood
from tests import docs_check
from tests.docs_commands import ROOT, check, everything, flags
from tpu.cli import build_parser as build_tpu_parser

FOUND = everything()
COMMANDS_FOUND = [one for one in FOUND if one.kind != "python"]
EXAMPLES = [one for one in FOUND if one.kind == "python"]


@pytest.mark.parametrize("found", COMMANDS_FOUND, ids=str)
def test_the_words_of_a_command_mean_something(found):
    check(found.text)
    line = docs_check.run_as(found)
    if line is not None:
        check(line)
        # Nothing that is only a name for something is left.
        assert "..." not in line and not re.search(r"\b(VARIANT|BASELINE|OUTPUT|FILE|DIR|TARGET)\b", line)


def test_all_kinds_of_places_are_read():
    assert len(COMMANDS_FOUND) > 90 and len(EXAMPLES) > 6
    assert {one.file.partition("/")[0] for one in FOUND} == {"README.md", "docs", "tpu", "experiments"}
    assert {one.kind for one in FOUND} == {"command", "inline", "python"}


def test_every_rule_is_of_a_command():
    """So that what is not run word for word is listed, with nothing besides."""
    used = {docs_check.rule_of(one) for one in COMMANDS_FOUND}
    assert [rule.pattern for rule in docs_check.RULES if rule not in used] == []
    assert docs_check.NEEDS.keys() <= {one.file for one in FOUND}


@pytest.mark.parametrize(
    "text",
    [
        "stagjax train --config=experiments/stdlib.py:shared_2x3 --work-dir=a",
        "stagjax train --config=experiments/stdlib.py:shared --workdir=a",
        "stagjax train --config=experiments/none.py:shared_2x3 --workdir=a",
        "stagjax train --config=experiments/stdlib.py:shared_2x3 --workdir=a --config.training.step=3",
        "stagjax bench decoding",
        "stagjax train --config=... --work-dir=a",
        "python -m tpu vm run --names=a -- stagjax train --workdir=a",
        "python -m tpu vm run --name=a -- stagjax train --config=experiments/stdlib.py:shared_2x3 --work-dir=a",
        "python benchmarks/peers.py --threat=2",
        "python benchmarks/peer.py",
        "pytest tests/training/test_kill.py",
        "pip install '.[tpus]'",
        "make tests",
        "python -m tests.conform FILE...",
    ],
)
def test_what_means_nothing_is_found(text):
    with pytest.raises((SystemExit, UserError, AssertionError)):
        check(text)


@pytest.mark.parametrize("found", EXAMPLES, ids=str)
def test_names_in_examples_exist(found):
    for node in ast.walk(ast.parse(found.text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")


def test_the_readmes_benchmark_is_whole(tmp_path, monkeypatch):
    """As it stands there: a file of its own, evaluated, and a seqio task."""
    seqio = pytest.importorskip("seqio")
    (example,) = [one for one in EXAMPLES if "BENCHMARKS" in one.text]
    names = {}
    exec(compile(example.text, str(example), "exec"), names)
    monkeypatch.setattr(catalog, "_REGISTERED", {})
    catalog.register(*names["BENCHMARKS"])
    (tmp_path / "mood").mkdir()
    for file, moods in (("test.jsonl", ("good", "bad", "good")), ("train.jsonl", ("bad", "good"))):
        lines = [json.dumps({"text": f"day {n}", "label": ("bad", "good").index(mood)}) for n, mood in enumerate(moods)]
        (tmp_path / "mood" / file).write_text("\n".join(lines) + "\n")
    benchmark = catalog.get("mood")
    items = benchmark.items(load(benchmark, tmp_path), shots=1)
    assert items[0].requests[1].context.endswith("day 0\nMood:") and items[0].requests[1].continuation == " good"
    scores = [benchmark.score(item.document, [Loglikelihood(v, None, 1) for v in (-2.0, -1.0)]) for item in items]
    wanted = {name: estimate.value for name, estimate in benchmark.aggregate(scores).items()}
    assert wanted == {"acc": pytest.approx(2 / 3)}

    from stagjax.tasks.registry import get_task

    task = get_task("mood", shots=1, directory=str(tmp_path))
    evaluator = seqio.Evaluator(task.name, seqio.EncDecFeatureConverter(pack=False))
    metrics, _ = evaluator.evaluate(
        compute_metrics=True,
        score_fn=lambda dataset, shapes=None: [(n, float(n % 2)) for n, _ in dataset.as_numpy_iterator()],
    )
    assert metrics.result()[task.name] == wanted


def known_flags():
    """Return the flags of every command."""
    return set().union(*(flags(build_parser(name), [name]) for name in COMMANDS), flags(build_tpu_parser(), []))


def messages(path):
    """Yield the texts in which a module may name a flag: all of stagjax's, of tpu's what it says of errors."""
    for node in ast.walk(ast.parse(path.read_text())):
        raises = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("UserError", "RunFailed")
        if raises or "stagjax" in path.parts[-3:]:
            for part in ast.walk(node):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.value


FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*[a-z](?![\w-])")
# Of others: TensorBoard, XLA's switches, what the launcher of processes hands to gcloud, zstd, our own benchmarks.
OTHERS = {"--logdir", "--server-side", "--documents", "--rounds", "--data", "--referee", "--type", "--skip-training"}


def test_flags_in_messages_and_docs_exist():
    known, unknown = known_flags() | OTHERS, set()
    styles = ROOT / "stagjax/reporting/html.py"  # whose variables look like flags
    for path in {*(ROOT / "stagjax").rglob("*.py"), *(ROOT / "tpu").glob("*.py")} - {styles}:
        unknown |= {(path.name, flag) for text in messages(path) for flag in FLAG.findall(text) if flag not in known}
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        unknown |= {(path.name, flag) for flag in FLAG.findall(path.read_text()) if flag not in known}
    assert sorted(one for one in unknown if not one[1].startswith("--xla")) == []


def test_the_examples_of_help_texts_mean_something():
    """The epilogs of stagjax's commands."""
    for name in COMMANDS:
        for text in epilogs(build_parser(name)):
            for line in text.replace("\\\n", " ").splitlines():
                if line.strip().startswith("stagjax ") and not re.search(r"/data/|sweep.json|\b(FILE|DIR)\b", line):
                    check(" ".join(shlex.quote(word) for word in shlex.split(line, comments=True)))


def epilogs(parser):
    """Yield the epilogs of a parser and of those below it."""
    yield parser.epilog or ""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for one in action.choices.values():
                yield from epilogs(one)
