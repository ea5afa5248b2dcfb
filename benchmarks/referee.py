"""Compare prompts and metrics with those that EleutherAI's harness made of the same files.

For each `TASK.jsonl` of the referee's folder: the contexts, continuations, right answers and few-shot examples. For
each `TASK.outputs.jsonl`: the metrics of every document, given a model's invented outputs, and the aggregates in
`metrics.json`.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table

from stagjax.errors import UserError
from stagjax.tasks import catalog
from stagjax.tasks.benchmark import Benchmark, Data, load
from stagjax.tasks.requests import Answer, Answers, GenerationRequest, Loglikelihood, Outcomes

EPILOG = """\
exit status: 0 all equal   1 something differs, the first differences are printed   2 bad input

MBPP's programs are not executed here: the referee's own verdicts stand in for them, so that its metric is compared, not
the sandbox.

example
  python benchmarks/referee.py --data=data --referee=data/referee --json=referee.json
"""
TOLERANCE = 1e-12  # relative: sums of a few thousand float64 values in another order
SHOWN = 10
NOT_METRICS = {"task", "n_docs", "num_fewshot", "sample_len"}


def main() -> int:
    """Compare everything that the referee has, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR", help="official files, see docs")
    parser.add_argument("--referee", type=pathlib.Path, required=True, metavar="DIR", help="what the harness made")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write counts and differences to FILE")
    args = parser.parse_args()
    try:
        names = referee_tasks(args.referee)
        results = {name: compare(name, args.data, args.referee) for name in names}
    except UserError as error:
        print(f"referee.py: {error}", file=sys.stderr)
        return 2
    report(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    return 1 if any(result["differences"] for result in results.values()) else 0


def referee_tasks(folder: pathlib.Path) -> list[str]:
    """Return the names of the tasks that a referee's folder has files of; raises `UserError` where there are none."""
    names = {path.name.split(".")[0] for path in folder.glob("*.jsonl")}
    if not names:
        raise UserError(f"--referee={folder} has no TASK.jsonl; give the folder with the harness's prompts")
    return sorted(names)


def compare(name: str, data_directory: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
    """Return how many prompts, documents and aggregates were compared, and all differences as lines.

    Raises:
      UserError: an unknown task, or missing or malformed data.
    """
    benchmark = catalog.get(name)
    data = load(benchmark, data_directory)
    counts, differences = {"prompts": 0, "documents": 0, "aggregates": 0}, []
    prompts = _records(folder / f"{name}.jsonl")
    for line in compare_prompts(benchmark, data, prompts):
        differences.append(line)
    counts["prompts"] = len(prompts)
    outputs = _records(folder / f"{name}.outputs.jsonl")
    if outputs:
        metrics = json.loads((folder / "metrics.json").read_text())
        wanted = {key: value for key, value in metrics[name].items() if key not in NOT_METRICS}
        differences += compare_metrics(benchmark, data, outputs, wanted)
        counts["documents"], counts["aggregates"] = len(outputs), len(wanted)
    return {**counts, "differences": differences}


def compare_prompts(benchmark: Benchmark, data: Data, wanted: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a line for each prompt that differs; `wanted` has those of any number of shots."""
    for shots in sorted({prompt["num_fewshot"] for prompt in wanted}):
        items = benchmark.items(data, shots=shots)
        for prompt in (prompt for prompt in wanted if prompt["num_fewshot"] == shots):
            item = items[prompt["doc_id"]]
            where = f"{shots} shots, document {item.index}"
            contexts = [request.context for request in item.requests]
            if isinstance(prompt["context"], str):
                contexts = contexts[:1] if len(set(contexts)) == 1 else contexts
                prompt = {**prompt, "context": [prompt["context"]]}
            found = {
                "context": contexts,
                "continuations": [
                    list(request.stop) if isinstance(request, GenerationRequest) else request.continuation
                    for request in item.requests
                ],
                "gold": benchmark.form.target(item.document),
                "fewshot_pool_indices": list(item.examples),
            }
            prompt = {
                **prompt,
                "continuations": [c["until"] if isinstance(c, dict) else c for c in prompt["continuations"]],
            }
            yield from (
                f"{where}: {key} is {found[key]!r}, the harness has {prompt[key]!r}"
                for key in found
                if found[key] != prompt[key]
            )


def compare_metrics(
    benchmark: Benchmark, data: Data, outputs: Sequence[dict[str, Any]], wanted: dict[str, float]
) -> list[str]:
    """Return a line for each metric, of a document or of all, that differs."""
    differences, scores = [], []
    for output in outputs:
        score = benchmark.score(data.documents[output["doc_id"]], answers_of(output))
        scores.append(score)
        for key, value in output["metrics"].items():
            found = _as_the_harness(benchmark.name, key, score)
            if not _close(found, value):
                differences.append(f"document {output['doc_id']}: {key} is {found!r}, the harness has {value!r}")
    estimates = benchmark.aggregate(scores)
    for key, value in wanted.items():
        found = estimates[key].value if key in estimates else None
        if found is None or not _close(found, value):
            differences.append(f"all documents: {key} is {found!r}, the harness has {value!r}")
    return differences


def answers_of(output: dict[str, Any]) -> list[Answer]:
    """Return a referee's outputs of a model as answers."""
    answers: list[Answer] = [Answers((output["gen"],))] if "gen" in output else []
    for logprob, is_greedy in zip(output.get("lls", ()), output.get("greedy", ()), strict=True):
        answers.append(Loglikelihood(logprob, is_greedy, num_tokens=1))
    if "pass_at_1" in output["metrics"]:
        answers.append(Outcomes((output["metrics"]["pass_at_1"] == 1,)))
    return answers


def report(results: dict[str, dict[str, Any]]) -> None:
    """Print the table and the first differences."""
    table = rich.table.Table(title="equal to lm-evaluation-harness?", box=rich.box.SIMPLE_HEAD, title_justify="left")
    for column in ("task", "prompts", "documents", "aggregates", "differences"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, result in results.items():
        counts = [str(result[key]) for key in ("prompts", "documents", "aggregates")]
        table.add_row(name, *counts, str(len(result["differences"])))
    console = rich.console.Console(highlight=False)
    console.print(table)
    for name, result in results.items():
        for line in result["differences"][:SHOWN]:
            console.print(f"{name}: {line}", markup=False, soft_wrap=True)


def _as_the_harness(name: str, key: str, score: Any) -> Any:
    # Two of its per-document values are what the aggregate is made of, under the aggregate's name.
    if key == "perplexity":
        return score["logprob"]
    if name == "cb" and key == "f1":
        return [score["gold"], score["predicted"]]
    return score.get(key)


def _close(found: Any, wanted: Any) -> bool:
    if isinstance(found, list):
        return found == wanted
    return found is not None and abs(found - wanted) <= TOLERANCE * max(1.0, abs(wanted))


def _records(path: pathlib.Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.strip()]


if __name__ == "__main__":
    sys.exit(main())
