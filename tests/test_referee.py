"""`benchmarks/referee.py`: finds what is equal, and what is not, in a referee's folder of invented content."""

import json
import pathlib
import subprocess
import sys

import pytest

from stagjax.tasks import catalog
from stagjax.tasks.benchmark import load
from stagjax.tasks.requests import Answers, GenerationRequest, Loglikelihood, Outcomes
from tests.tasks import official_files
from tests.waits import HANG

ROOT = pathlib.Path(__file__).parent.parent


def _prompts(name, directory, shots):
    benchmark = catalog.get(name)
    for item in benchmark.items(load(benchmark, directory), shots):
        contexts = [request.context for request in item.requests]
        yield {
            "num_fewshot": shots,
            "doc_id": item.index,
            "context": contexts if len(set(contexts)) > 1 else contexts[0],
            "continuations": [
                {"until": list(request.stop)} if isinstance(request, GenerationRequest) else request.continuation
                for request in item.requests
            ],
            "gold": benchmark.form.target(item.document),
            "fewshot_pool_indices": list(item.examples),
        }


def _outputs(name, directory):
    """Yield invented outputs with our metrics, in the referee's names."""
    benchmark = catalog.get(name)
    for index, item in enumerate(benchmark.items(load(benchmark, directory), 0)):
        logprobs = [-1.0 - ((7 * index + 3 * n) % 5) for n, _ in enumerate(item.requests)]
        if name == "mbpp":
            score = benchmark.score(item.document, [Answers(("x",)), Outcomes((index == 0,))])
            yield {"doc_id": index, "gen": "x", "metrics": {"pass_at_1": score["pass_at_1"]}}
            continue
        if name == "squadv2":
            yield {"doc_id": index, "gen": "Ada", "lls": logprobs[1:], "greedy": [False], "metrics": {}}
            continue
        score = benchmark.score(item.document, [Loglikelihood(logprob, True, 1) for logprob in logprobs])
        metrics = {
            "lambada_openai": lambda s: {"perplexity": s["logprob"], "acc": s["acc"]},
            "cb": lambda s: {"acc": s["acc"], "f1": [s["gold"], float(s["predicted"])]},
            "record": lambda s: {"f1": s["f1"], "em": s["em"]},
        }.get(name, lambda s: {"acc": s["acc"]})(score)
        yield {"doc_id": index, "lls": logprobs, "greedy": [True] * len(logprobs), "metrics": metrics}


def _aggregates(name, directory, outputs):
    benchmark = catalog.get(name)
    documents = load(benchmark, directory).documents
    scores = []
    for output in outputs:
        answers = [Answers((output["gen"],))] if "gen" in output else []
        answers += [Loglikelihood(logprob, True, 1) for logprob in output.get("lls", ())]
        answers += [Outcomes((output["metrics"]["pass_at_1"] == 1,))] if name == "mbpp" else []
        scores.append(benchmark.score(documents[output["doc_id"]], answers))
    return {key: float(estimate.value) for key, estimate in benchmark.aggregate(scores).items()}


@pytest.fixture
def referee(tmp_path):
    directory, folder = official_files.write(tmp_path / "data"), tmp_path / "referee"
    folder.mkdir()
    metrics = {}
    for name in ("cb", "winogrande", "lambada_openai", "squadv2", "mbpp", "record"):
        prompts = [prompt for shots in (0, 1) for prompt in _prompts(name, directory, shots)]
        outputs = list(_outputs(name, directory))
        for suffix, records in (("", prompts), (".outputs", outputs)):
            (folder / f"{name}{suffix}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        metrics[name] = {"task": name, "n_docs": len(outputs), **_aggregates(name, directory, outputs)}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return tmp_path


def run(root, *arguments):
    command = [sys.executable, ROOT / "benchmarks/referee.py", f"--data={root}/data", f"--referee={root}/referee"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=HANG, cwd=ROOT)


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_equal_content_passes_and_each_kind_of_difference_is_found(referee):
    done = run(referee, f"--json={referee}/out.json")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads((referee / "out.json").read_text())
    assert counts["cb"] == {"prompts": 4, "documents": 2, "aggregates": 2, "differences": []}
    folder = referee / "referee"
    change(folder / "cb.jsonl", "it is. True", "it is: True")
    change(folder / "winogrande.jsonl", '"fewshot_pool_indices": [3]', '"fewshot_pool_indices": [2]')
    change(folder / "lambada_openai.outputs.jsonl", '"perplexity": -1.0', '"perplexity": -1.1')
    change(folder / "squadv2.jsonl", '"until": ["\\n"]', '"until": ["."]')
    change(folder / "record.jsonl", '"gold": "  - Paris', '"gold": "  - Rome')
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["mbpp"]["pass_at_1"] += 1e-9
    (folder / "metrics.json").write_text(json.dumps(metrics))
    done = run(referee, f"--json={referee}/out.json")
    assert done.returncode == 1
    found = {name: result["differences"] for name, result in json.loads((referee / "out.json").read_text()).items()}
    assert {name: len(lines) for name, lines in found.items()} == {
        "cb": 1,
        "winogrande": 1,
        "lambada_openai": 1,
        "squadv2": 1,
        "mbpp": 1,
        "record": 1,
    }
    assert found["cb"][0].startswith("0 shots, document 0: context is ['A: I doubt it.")
    assert found["mbpp"][0].startswith("all documents: pass_at_1 is 0.5, the harness has 0.500000001")
    assert "fewshot_pool_indices is [3]" in done.stdout


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "referee").mkdir()
    done = run(tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and "has no TASK.jsonl" in done.stderr
