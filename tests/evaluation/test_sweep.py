"""Sweeps of tiny models: killed at random, shared by processes, of checkpoints that change and renamed runs."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from stagjax.cli import main
from stagjax.evaluation import running
from stagjax.evaluation.plan import load_plan
from stagjax.evaluation.scoring import Scorer
from stagjax.evaluation.subjects import Subject
from tests.compiling import environment
from tests.runs import tiny_run, write_corpus, write_run
from tests.tasks import official_files

TASKS = ["hellaswag", "copa", "lambada_openai", "pile"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with two runs and the benchmarks' files."""
    directory = tmp_path_factory.mktemp("sweep")
    corpus = write_corpus(directory)
    for variant in ("shared_2x3", "baseline_3"):
        config = tiny_run(variant, corpus, model__max_length=256, model__layers_per_stack=1)
        write_run(config, directory / variant)
    official_files.write(directory / "data")
    return directory


def write_sweep(place, file, runs=("shared_2x3", "baseline_3"), **fields):
    tree = {"runs": [{"path": str(place / run), "checkpoints": ["all"]} for run in runs], "tasks": TASKS}
    file.write_text(json.dumps(tree | {"data_dir": str(place / "data")} | fields))
    return f"--config={file}"


def table(output):
    """Everything that a sweep found, without what may differ: times, the machine, and where things are."""
    rows = json.loads((output / "results.json").read_text())["rows"]
    kept = ("key", "status", "metrics", "documents", "truncated", "scored_by")
    return [
        {name: row[name] for name in ("name", "step", "content", "average", "pile_perplexity")}
        | {label: {name: cell[name] for name in kept} for label, cell in row["cells"].items()}
        for row in rows
    ]


@pytest.fixture(scope="module")
def swept(place):
    """A sweep that nothing disturbed."""
    output = place / "undisturbed"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "PORTION", 4)
        assert main(["sweep", write_sweep(place, place / "a.json"), f"--output={output}", "--mesh=data=1"]) == 0
    return output


class Killed(BaseException):
    """The end of a process, at a place where its files are as a kill leaves them."""


def test_killed_at_random_it_ends_with_the_same_table_and_repeats_nothing(place, swept, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "PORTION", 4)
    answered, fsync, answer = [], os.fsync, Scorer.answer
    remaining = [0]

    def counted(self, requests, on_progress):
        answered.append((self._lm.step, self._model.num_stacks, requests[0]))
        return answer(self, requests, on_progress)

    def dying(number):
        remaining[0] -= 1
        if remaining[0] == 0:
            raise Killed
        fsync(number)

    monkeypatch.setattr(Scorer, "answer", counted)
    monkeypatch.setattr(os, "fsync", dying)
    draw, output = random.Random(6), tmp_path / "killed"
    command = ["sweep", write_sweep(place, tmp_path / "a.json"), f"--output={output}", "--mesh=data=1"]
    for _ in range(3):
        remaining[0] = draw.randint(2, 12)
        with pytest.raises(Killed):
            main(command)
        for log in output.glob("cells/*.jsonl"):
            if not log.with_suffix(".json").exists():
                log.write_text(log.read_text() + '{"half')
    remaining[0] = -1
    assert main(command) == 0
    assert table(output) == table(swept)
    # A kill loses the portion that it hits, and nothing else is answered twice.
    assert len(answered) - len(set(answered)) <= 3
    count = len(answered)
    assert main(command) == 0 and len(answered) == count


def test_nothing_depends_on_names_and_everything_on_content(place, swept, tmp_path, monkeypatch):
    """A renamed run loads no model; other parameters under the same name are made anew."""
    loads = []
    load = Subject.load
    monkeypatch.setattr(Subject, "load", lambda self, mesh: loads.append(self.step) or load(self, mesh))
    shutil.copytree(place / "shared_2x3", tmp_path / "renamed")
    shutil.copytree(swept, tmp_path / "out")
    config = write_sweep(place, tmp_path / "b.json", runs=[str(tmp_path / "renamed")])
    command = ["sweep", config, f"--output={tmp_path}/out", "--mesh=data=1"]
    assert main(command) == 0 and loads == []
    renamed, before = table(tmp_path / "out"), table(swept)[:2]
    assert [row.pop("name") for row in renamed] == ["renamed", "renamed"]
    assert renamed == [{name: value for name, value in row.items() if name != "name"} for row in before]
    # The same path, another checkpoint of the same step.
    shutil.rmtree(tmp_path / "renamed")
    corpus = place / "corpus"
    config = tiny_run("shared_2x3", corpus, model__max_length=256, model__layers_per_stack=1)
    write_run(config, tmp_path / "renamed", losses=(3.0,))
    from stagjax.checkpoints.saving import Checkpoints
    from tests.variants import params_of

    checkpoints = Checkpoints(tmp_path / "renamed", keep_last=9)
    state = {"params": params_of(config.model, seed=9)}
    checkpoints.save(4, state, config.to_dict(), {"vocabulary_fingerprint": fingerprint(tmp_path / "renamed")}, 2.0)
    checkpoints.close()
    assert main(command) == 0 and loads == [4]
    changed = table(tmp_path / "out")
    assert changed[0]["content"] == before[0]["content"] and changed[1]["content"] != before[1]["content"]
    assert changed[0]["pile"] == before[0]["pile"]
    assert changed[1]["pile"]["key"] != before[1]["pile"]["key"]
    assert changed[1]["pile"]["metrics"] != before[1]["pile"]["metrics"]


def fingerprint(workdir):
    return json.loads((workdir / "manifest.json").read_text())["vocabulary_fingerprint"]


def test_changed_documents_and_settings_have_other_keys(place, swept, tmp_path):
    data = shutil.copytree(place / "data", tmp_path / "data")
    file = data / "superglue/COPA/val.jsonl"
    file.write_text(file.read_text().replace('"label": 0', '"label": 1'))
    keys = {label: cell["key"] for label, cell in table(swept)[0].items() if isinstance(cell, dict) and "key" in cell}
    shutil.copytree(swept, tmp_path / "out")
    config = write_sweep(place, tmp_path / "c.json", runs=["shared_2x3"], tasks=["copa", "hellaswag", "pile"])
    command = ["sweep", config, f"--output={tmp_path}/out", f"--data-dir={data}", "--mesh=data=1"]
    assert main(command) == 0
    row = table(tmp_path / "out")[0]
    # The same prompts with another right answer are another cell.
    assert row["copa"]["key"] != keys["copa"] and row["hellaswag"]["key"] == keys["hellaswag"]
    # Another rule for long documents is one of The Pile alone, fewer documents are one of every task.
    for change, same in (({"documents": "overlap"}, True), ({"limit": 2}, False)):
        (tmp_path / "c.json").write_text(json.dumps(json.loads((tmp_path / "c.json").read_text()) | change))
        assert main(command) == 0
        row = table(tmp_path / "out")[0]
        assert row["pile"]["key"] != keys["pile"] and (row["hellaswag"]["key"] == keys["hellaswag"]) == same


def test_the_environment_names_the_data_and_a_bench_that_gives_nothing_is_said(
    place, swept, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("STAGJAX_DATA_DIR", str(place / "data"))
    shutil.copytree(swept, tmp_path / "out")
    config = write_sweep(place, tmp_path / "a.json", data_dir=None, bench=[str(tmp_path / "lat")])
    command = ["sweep", config, f"--output={tmp_path}/out", "--mesh=data=1"]
    assert main(command) == 0
    assert table(tmp_path / "out") == table(swept)
    assert f"no latencies of bench {tmp_path}/lat: it is not there; make it by" in capsys.readouterr().out
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["plan"]["data_dir"] == str(place / "data")
    assert {cell["own_examples"] for row in results["rows"] for cell in row["cells"].values()} == {0}
    # What the sweep says counts before the environment, and the command line before both.
    config = write_sweep(place, tmp_path / "a.json", data_dir=str(tmp_path / "none"))
    assert main(command) == 2 and f"{tmp_path}/none/hellaswag" in capsys.readouterr().err
    assert main([*command, f"--data-dir={place}/data"]) == 0
    # `evaluate` alike.
    assert main(["evaluate", "--list", "copa"]) == 0 and str(place / "data") in capsys.readouterr().out.replace(
        "\n", ""
    )


def test_two_processes_share_the_work_and_one_goes_on_alone(place, swept, tmp_path):
    """Two real processes on one directory; one is killed with SIGKILL while it works."""
    config, output = write_sweep(place, tmp_path / "a.json"), tmp_path / "shared"
    command = [sys.executable, "-m", "stagjax", "sweep", config, f"--output={output}", "--mesh=data=1"]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    started = [subprocess.Popen(command, **pipes, env=environment()) for _ in "ab"]
    try:
        while not list(output.glob("cells/*.json")) and started[0].poll() is None:
            time.sleep(0.01)
        started[0].send_signal(signal.SIGKILL)
        _, errors = started[1].communicate(timeout=900)
    finally:
        for process in started:
            process.kill()
            process.wait()
    assert started[1].returncode == 0, errors
    # Other portions make other batches: equal within rounding only where PORTION differs, so keys and counts.
    same = lambda rows: [
        {label: (cell["key"], cell["documents"]) for label, cell in row.items() if label in TASKS} for row in rows
    ]
    assert same(table(output)) == same(table(swept))


def test_a_signal_leaves_it_resumable(place, tmp_path, monkeypatch, capsys):
    answer = Scorer.answer

    def interrupting(number):
        def interrupted(self, requests, on_progress):
            os.kill(os.getpid(), number)
            return answer(self, requests, on_progress)

        return interrupted

    config = write_sweep(place, tmp_path / "a.json", runs=["baseline_3"], tasks=["copa"])
    command = ["sweep", config, f"--output={tmp_path}/out", "--mesh=data=1"]
    for number, status, text in ((signal.SIGTERM, 75, "told to stop"), (signal.SIGINT, 130, "stopped by Ctrl-C")):
        with monkeypatch.context() as patch:
            patch.setattr(Scorer, "answer", interrupting(number))
            assert main(command) == status
        assert f"{text}: what is finished is in {tmp_path}/out; the same command goes on" in capsys.readouterr().err
        assert not list(tmp_path.glob("out/cells/*.json"))
    assert main(command) == 0


def test_bad_data_of_one_task_leaves_the_others(place, tmp_path, capsys):
    data = shutil.copytree(place / "data", tmp_path / "data")
    (data / "superglue/CB/val.jsonl").write_text('{"premise": "P", "hypothesis": 3, "label": "neutral", "idx": 1}\n')
    (data / "hellaswag/hellaswag_val.jsonl").unlink()
    output = tmp_path / "out"
    command = ["evaluate", f"--workdir={place}/shared_2x3", f"--data-dir={data}", "--mesh=data=1"]
    assert main([*command, "--tasks=cb,hellaswag,copa,mbpp,rte", f"--output={output}"]) == 2
    captured = capsys.readouterr()
    assert f"{data}/superglue/CB/val.jsonl:1: field 'hypothesis' is 3; it has to be a string\n" in captured.err
    assert f"{data}/hellaswag/hellaswag_val.jsonl is missing (hellaswag, validation split)" in captured.err
    assert "left out: mbpp (programs of a model are executed with --allow-code-execution only)" in captured.out
    cells = json.loads((output / "results.json").read_text())["rows"][0]["cells"]
    assert {label: cell["status"] for label, cell in cells.items()} == {
        "cb": "failed",
        "hellaswag": "failed",
        "copa": "done",
        "mbpp": "skipped",
        "rte": "done",
    }
    samples = [json.loads(line) for line in (output / "samples/copa.jsonl").read_text().splitlines()]
    assert [sample["index"] for sample in samples] == [0, 1]
    mean = sum(sample["scores"]["acc"] for sample in samples) / 2
    assert cells["copa"]["metrics"]["acc"]["value"] == mean
    assert cells["copa"]["sources"][0]["partial"] and cells["copa"]["sources"][0]["expected"] == 100
    # Results of another model are not overwritten.
    for other in ("--checkpoint=2", "--decoding=recurrent"):
        assert main([*command, "--tasks=copa", f"--output={output}", other]) == 2
        assert "holds the results of another model or mode" in capsys.readouterr().err
    # Too many shots fail that task alone.
    assert main([*command, "--tasks=copa@9,rte"]) == 2
    captured = capsys.readouterr()
    assert "shots=9 needs 10 examples to draw from" in captured.err and "rte" in captured.out


def test_modes_that_a_model_has_not_are_left_out_and_said(place, tmp_path):
    plan = load_plan(write_sweep(place, tmp_path / "a.json", decoding=["parallel", "recurrent"]).partition("=")[2])
    rows, notes = plan.rows()
    assert [(row.subject.name, row.subject.step, row.settings.decoding) for row in rows] == [
        ("shared_2x3", 2, "parallel"),
        ("shared_2x3", 2, "recurrent"),
        ("shared_2x3", 4, "parallel"),
        ("shared_2x3", 4, "recurrent"),
        ("baseline_3", 2, "parallel"),
        ("baseline_3", 4, "parallel"),
    ]
    assert notes == ["baseline_3 has no recurrent decoding"]


def test_recurrent_decoding_is_scored_by_the_decode_path(place, tmp_path, capsys):
    command = ["evaluate", f"--data-dir={place}/data", "--tasks=copa", "--decoding=recurrent", "--mesh=data=1"]
    assert main([*command, f"--workdir={place}/shared_2x3", f"--json={tmp_path}/r.json"]) == 0
    row = json.loads((tmp_path / "r.json").read_text())["rows"][0]
    assert row["scored_by"].startswith("decode path, token by token") and row["decoding"] == "recurrent"
    assert row["cells"]["copa"]["scored_by"] == row["scored_by"]
    capsys.readouterr()
    assert main([*command, f"--workdir={place}/baseline_3"]) == 2
    assert "recurrent decoding needs a shared-weights model" in capsys.readouterr().err


def test_processes_of_one_mesh_find_the_same(place, swept, tmp_path):
    """Two processes as the hosts of a pod: the first one writes, and both answer."""
    command = [sys.executable, "-m", "stagjax", "evaluate", f"--workdir={place}/shared_2x3", f"--data-dir={place}/data"]
    arguments = ["--tasks=copa,pile", "--local-processes=2", f"--output={tmp_path}/out"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, env=environment(), timeout=900)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["machine"]["processes"] == 2
    alone = next(row for row in table(swept) if row["name"] == "shared_2x3" and row["step"] == 4)
    for label in ("copa", "pile"):
        cell = results["rows"][0]["cells"][label]
        assert cell["key"] == alone[label]["key"]
        for name, found in cell["metrics"].items():
            assert found["value"] == pytest.approx(alone[label]["metrics"][name]["value"], rel=1e-5)
