"""Run every command and example of README and docs in a copy of this checkout: `make docs-check`.

    python tests/docs_check.py [FILE...]      README.md, docs/data.md, ...; all by default

Word for word, in order, each file's in a directory of its own, with small data made here. What is not run so stands in
`RULES` with its reason. Prints a line a command; exit status 1 if any failed.
"""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from tests.docs_commands import FOREIGN, ROOT, Found, everything
from tests.tasks import official_files

LIMIT_S = 3600
# As much of an experiment of The Pile as is computed in seconds.
SMALL = (
    "--config.model.model_dim=64 --config.model.num_heads=2 --config.model.num_kv_heads=2 --config.model.head_dim=32 "
    "--config.model.ff_dim=64 --config.model.layers_per_stack=1 --config.model.vocab_size=320 "
    "--config.training.global_batch=2 --config.training.steps=2 --config.training.warmup_steps=1 "
    "--config.training.validate_every=2 --config.training.checkpoint_every=2"
)
RUN = "stagjax train --config=experiments/stdlib.py"
# What files need besides data/, pile/ and vocabularies: made once, by these commands.
RUNS = {
    "runs/shared": f"{RUN}:shared_2x3,runlocal --workdir=runs/shared",
    "runs/a": f"{RUN}:baseline_3,runlocal --workdir=runs/a",
    "runs/base": "cp -r runs/a runs/base",
    "runs/baseline_6": f"{RUN}:baseline_6,runlocal --workdir=runs/baseline_6",
    "runs/shared_2x3": "cp -r runs/shared runs/shared_2x3",
    "runs/separate_2x3": f"{RUN}:separate_2x3,runlocal --workdir=runs/separate_2x3",
    "pile_1280": "stagjax data prepare --path=pile/ --vocabulary=pile.model --row-length=1280 --output=pile_1280",
}
SWEPT = ("runs/baseline_6", "runs/shared", "runs/shared_2x3", "runs/separate_2x3")
NEEDS = {
    "README.md": ("runs/a", "runs/base"),
    "docs/checkpoints.md": ("runs/a",),
    "docs/data.md": ("pile_1280",),
    "docs/evaluation.md": SWEPT,
    "docs/evaluation_speed.md": ("runs/shared",),
    "experiments/sweep.py": SWEPT,
}


class Rule(NamedTuple):
    """How commands are run that are not run word for word.

    Attributes:
      pattern: of the command, from its beginning.
      reason: why.
      changes: (text, what stands for it); None where it is not run.
      file: the only one in which it holds, "" for all.
    """

    pattern: str
    reason: str
    changes: tuple[tuple[str, str], ...] | None = None
    file: str = ""


def at_end(text: str) -> tuple[tuple[str, str], ...]:
    """Return the change that adds words to a command."""
    return ((r"$", f" {text}"),)


DRY = ((r" --name=", " --dry-run --name="), (r"stagjax train \.\.\.", f"{RUN}:separate_2x3 --workdir=gs://b/r"))
QUICK = at_end("--repeats=1 --warmup=1 --tokens=2 --against=baseline --split=none")
RULES = (
    Rule(r"make (test|docs-check)", "what holds a test of these commands' words, and this"),
    Rule(r"(\S*python -m )?pytest", "a part of the test suite"),
    Rule(r"pip install", "changes this environment; its extras are checked"),
    Rule(rf"({'|'.join(FOREIGN)}) ", "needs an account, or a program of others"),
    Rule(r"python -m tpu (vm (?!.*--dry-run)|gke)", "needs an account", DRY),
    Rule(r"make demo", "four minutes", ((r".*", "stagjax demo --workdir=demo --steps=8"),)),
    Rule(
        r"stagjax train .*training.steps=600",
        "three minutes",
        ((r"steps=600", "steps=20 --config.training.warmup_steps=10"),),
        "README.md",
    ),
    Rule(
        r"stagjax train .*training.steps=1000",
        "four minutes",
        ((r"steps=1000", "steps=20 --config.training.warmup_steps=10"),),
    ),
    Rule(r"stagjax train .*training.steps=100 ", "a minute each", ((r"steps=100", "steps=20"),)),
    Rule(
        r"stagjax train .*runs/longer",
        "2000 steps",
        at_end("--config.training.steps=20 --config.training.warmup_steps=10"),
    ),
    Rule(
        r"stagjax data vocab .*=256000",
        "no such vocabulary in little text",
        ((r"0.001 .*", "1 --size=320 --output=again.model"),),
    ),
    Rule(r"stagjax train .*pile.py:shared_2x18", "1.75B parameters, 250,000 steps", at_end(SMALL)),
    Rule(r"stagjax checkpoint convert BASELINE", "a name for a run", ((r"BASELINE", "runs/base"),)),
    Rule(r"stagjax train --config=\.\.\.", "unfinished", ((r"\.\.\.", "experiments/stdlib.py:baseline_3,runlocal"),)),
    Rule(r"stagjax info --config=\.\.\.", "unfinished", ((r"\.\.\.", "experiments/pile.py:separate_2x18"),)),
    Rule(r"stagjax info .*VARIANT", "a name for any variant", ((r"VARIANT", "shared_2x18"),)),
    Rule(r"stagjax train .*:NAME", "a name for any variant", ((r"NAME", "baseline_3,runlocal"),)),
    Rule(r"stagjax train .*:VARIANT", "a name for any variant", ((r"VARIANT", "baseline_3,runlocal"), (r"DIR", "r"))),
    Rule(
        r"stagjax plan .*--compare.*--program=train",
        "hours for all variants at their depth",
        at_end("--variants=separate_2x18_window_1 --config.model.layers_per_stack=2"),
    ),
    Rule(r"stagjax plan .*--compare", "minutes for all variants", at_end("--variants=separate_2x18_window_1")),
    Rule(r"stagjax plan .*v5e:8x16", "minutes at its depth", at_end("--config.model.layers_per_stack=2")),
    Rule(r"stagjax bench decode .*--against", "ten minutes", at_end("--repeats=1 --warmup=1 --tokens=2")),
    Rule(r"stagjax bench decode .*=", "six minutes", QUICK),
    Rule(r"stagjax bench train", "two minutes", at_end("--steps=1 --rounds=1")),
    Rule(
        r"python -m tests.conformance FILE", "a name for files", ((r"FILE.*", "tests/data/conformance/shared_2.npz"),)
    ),
    Rule(r"python benchmarks/referee.py", "needs what the harness made; tests/test_referee.py makes such files"),
    Rule(r"stagjax data verify", "a name for a directory", ((r"OUTPUT", "pile_1280"),)),
    Rule(r"stagjax data prepare --path=\.\.\.", "unfinished", ((r"\.\.\.", "pile/ --output=one"),)),
    Rule(r"python benchmarks/read_rows.py", "a name for a directory", ((r"DIR", "pile_1280 4 0.1"),)),
    Rule(r"stagjax evaluate .*--shots=5", "the made-up files have few examples", ((r"=5", "=1 --limit=1"),)),
    Rule(
        r"python benchmarks/harness.py",
        "a name for a directory; an hour",
        ((r"DIR", "data --documents=2 --rounds=1 --layers=1 --width=64 --max-length=128"),),
    ),
    Rule(r"python benchmarks/loop_cost.py", "480 steps of 32 rows, five minutes", at_end("1 2")),
    Rule(
        r"python -m tests.training.faults",
        "unfinished",
        ((r"\.\.\.", "--config=experiments/stdlib.py:baseline_3,runlocal --workdir=runs/faults"),),
    ),
    Rule(r"python -m tpu TARGET VERB|python -m tpu$", "a mention", ((r".*", "python -m tpu --help"),)),
    Rule(r"stagjax generate --workdir=gs://\.\.\.", "needs a bucket"),
    Rule(r"stagjax( [a-z]+)+$", "a mention", at_end("--help")),
)


def rule_of(found: Found) -> Rule | None:
    """Return the first rule for a command, None where it is run word for word."""
    if found.kind == "python":
        return None
    return next((r for r in RULES if re.match(r.pattern, found.text) and r.file in ("", found.file)), None)


def run_as(found: Found) -> str | None:
    """Return the shell's line for a command, None where it is not run."""
    rule = rule_of(found)
    if found.kind == "python":
        return "python -c " + _quoted(found.text)
    if rule is None:
        return found.text
    if rule.changes is None:
        return None
    text = found.text
    for pattern, new in rule.changes:
        text = re.sub(pattern, lambda _, new=new: new, text, count=0 if pattern.startswith(" ") else 1)
    return text


def make_base(base: pathlib.Path) -> None:
    """Copy the checkout, with an environment that installs nothing, and make the data."""
    from tests.data.pile import write_pile

    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, base / name)
    (base / ".venv").mkdir()
    (base / ".venv/bin").symlink_to(pathlib.Path(sys.prefix) / "bin")
    official_files.write(base / "data")
    write_pile(base / "pile", number=60)


def go(line: str, directory: pathlib.Path) -> tuple[int, float, str]:
    """Run a line; return its status, seconds and output. `stagjax` is the copy's."""
    path = f"{pathlib.Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
    variables = os.environ | {"PATH": path, "PYTHONPATH": str(directory)}
    variables.pop("STAGJAX_DATA_DIR", None)
    begun = time.monotonic()
    try:
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=directory,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=LIMIT_S,
        )
        status, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        status, output = 124, error.stdout or b""
    return status, time.monotonic() - begun, output.decode(errors="replace")


def main(files: list[str]) -> int:
    """Run what is asked for, all by default."""
    failed, counted = [], {"ok": 0, "FAILED": 0, "not run": 0}
    with tempfile.TemporaryDirectory(prefix="docs_check_") as place:
        base = pathlib.Path(place, "base")
        base.mkdir()
        make_base(base)
        vocabulary = "stagjax data vocab --source=jsonl --path=pile/ --share=1 --size=320 --output=pile.model"
        made = f"{vocabulary} && mkdir -p vocab && cp pile.model vocab/ && cp pile.model pile_256k.model"
        found = [one for one in everything() if not files or one.file in files]
        needed = {name for file, names in NEEDS.items() if any(one.file == file for one in found) for name in names}
        needed |= {"runs/a"} if "runs/base" in needed else set()
        for line in (made, *(line for name, line in RUNS.items() if name in needed)):
            status, seconds, output = go(line, base)
            _tell("ok" if not status else "FAILED", seconds, line)
            if status:
                print(output)
                return 1
        for file in dict.fromkeys(one.file for one in found):
            directory = pathlib.Path(place, "of_file")
            _place(base, directory, NEEDS.get(file, ()))
            for one in (one for one in found if one.file == file):
                line = run_as(one)
                if line is None:
                    _tell("not run", 0.0, f"{one}  ({rule_of(one).reason})")
                    counted["not run"] += 1
                    continue
                status, seconds, output = go(line, directory)
                verdict = "FAILED" if status else "ok"
                counted[verdict] += 1
                changed = f"  ({rule_of(one).reason}: {line})" if rule_of(one) else ""
                _tell(verdict, seconds, f"{one}{changed}")
                if status:
                    failed.append(str(one))
                    print(f"status {status}\n" + "\n".join(output.splitlines()[-30:]), flush=True)
            shutil.rmtree(directory)
    print(", ".join(f"{number} {what}" for what, number in counted.items()))
    return 1 if failed else 0


def _place(base: pathlib.Path, directory: pathlib.Path, needed: tuple[str, ...]) -> None:
    """Make a file's directory: the copy, its data, and of what was made the things that the file needs."""
    left = {base / name for name in RUNS if name not in needed}
    ignore = lambda folder, names: [name for name in names if pathlib.Path(folder, name) in left]
    shutil.copytree(base, directory, symlinks=True, ignore=ignore)


def _tell(verdict: str, seconds: float, text: str) -> None:
    print(f"{verdict:8} {seconds:7.1f} s  {text}", flush=True)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
