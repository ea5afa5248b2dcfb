"""A sweep as plain data: what it asks, and every wrong field by its message."""

import json

import pytest

from stagjax.errors import UserError
from stagjax.evaluation.plan import from_dict, load_plan
from stagjax.evaluation.questions import parse_tasks

TREE = {"runs": ["runs/a", {"path": "runs/b", "checkpoints": ["all", 4]}], "tasks": ["hellaswag"]}


def test_plain_data_becomes_a_plan():
    plan = from_dict(TREE | {"shots": [0, None], "limit": 5})
    assert [(run.name, run.checkpoints) for run in plan.runs] == [("a", (None,)), ("b", ("all", 4))]
    assert plan.shots == (0, None) and plan.limit == 5 and plan.decoding == ("parallel",) and plan.bench == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": ["a"]}, "unknown field of sweep 'task'; did you mean 'tasks'"),
        ({"tasks": "hellaswag"}, "tasks='hellaswag' has to be a list"),
        ({"tasks": []}, r"tasks=\[\] has to be a list with one entry or more"),
        ({"runs": [{"name": "a"}]}, r"runs\[0\] lacks 'path'"),
        ({"runs": [3]}, r"runs\[0\] is 3; it has to be a table"),
        ({"runs": ["x/a", "y/a"]}, "two runs have one name: a, a"),
        ({"runs": [{"path": "a", "checkpoints": ["newest"]}]}, r"runs\[0\].checkpoints has 'newest'; use best"),
        ({"runs": [{"path": "a", "checkpoints": [True]}]}, "checkpoints has True"),
        ({"shots": [-1]}, r"shots=\[-1\] has to be a list of numbers, 0 or more"),
        ({"limit": 0}, "limit=0 is below 1; use 1 or more"),
        ({"temperature": -1}, "temperature=-1 is below 0; use 0 or more"),
        ({"temperature": float("inf")}, "temperature=inf is not finite"),
        ({"samples": True}, "samples=True is bool, not int"),
        ({"samples": None}, "samples=None is NoneType, not int"),
        ({"seed": -1}, "seed=-1 is below 0; use 0 to 4294967295"),
        ({"seed": 2**32}, "seed=4294967296 is over 4294967295; use 0 to 4294967295"),
    ],
)
def test_bad_fields_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        from_dict(TREE | changes)


def test_files_are_python_or_json(tmp_path):
    (tmp_path / "s.json").write_text(json.dumps(TREE))
    (tmp_path / "s.py").write_text("def get_sweep(arg):\n    return {'runs': [arg], 'tasks': ['cb']}\n")
    assert load_plan(f"{tmp_path}/s.json").tasks == ("hellaswag",)
    assert load_plan(f"{tmp_path}/s.py:x/y").runs[0].path == "x/y"
    assert [run.name for run in load_plan("experiments/sweep.py:z").runs] == [
        "baseline_6",
        "shared_2x3",
        "separate_2x3",
    ]
    assert load_plan("experiments/sweep.py:z").bench == ("z/latency",)
    for name, text, message in (
        ("a.json", "{", "is no JSON"),
        ("a.py", "x = 1", "defines no get_sweep"),
        ("b.py", "1 / 0", "does not run: ZeroDivisionError"),
        ("c.py", "def get_sweep(arg):\n    return {}['x']", "get_sweep does not run: KeyError"),
        ("a.txt", "", "is not a Python file; use e.g. experiments/sweep.py, or a JSON file"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message):
            load_plan(f"{tmp_path}/{name}")
    with pytest.raises(UserError, match="there is no file"):
        load_plan(f"{tmp_path}/none.py")


def test_tasks_have_their_own_shots_where_they_say_so():
    labels = lambda names, shots: [(one.label, one.shots) for one in parse_tasks(names, shots)]
    # MBPP has examples of its own, The Pile none: both keep their shots unless they are named with others.
    assert labels(["cb", "mbpp", "pile"], 5) == [("cb", 5), ("mbpp", 3), ("pile", 0)]
    assert labels(["cb@1", "cb", "mbpp@0"], 5) == [("cb@1", 1), ("cb", 5), ("mbpp@0", 0)]
    assert len(labels(["superglue", "cb"], None)) == 8
    with pytest.raises(UserError, match="'x' is no number of shots; use e.g. cb@5"):
        parse_tasks(["cb@x"], None)
    with pytest.raises(UserError, match="unknown benchmark"):
        parse_tasks(["cbb"], None)
