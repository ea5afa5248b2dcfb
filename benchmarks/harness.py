"""Score one model by stagjax and by lm-evaluation-harness's Hugging Face backend: equal numbers, and how fast.

Each side runs in a process of its own, and they take turns, so that whatever else the machine does falls on both alike.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

PACKAGES = ("lm_eval", "transformers", "torch", "jax")
BATCHES = (1, 8, 16)
FILES = {"hellaswag": "hellaswag/hellaswag_val.jsonl", "lambada_openai": "lambada/lambada_test.jsonl"}
OTHER_KINDS = ("rolling", "generation")
TOLERANCE = 1e-4

EPILOG = """\
the model: a baseline of --layers layers and width --width (heads of 64, GeGLU of 4 widths), bytes, float32, random
  stagjax  benchmarks/harness_model.py, the harness's LM on stagjax's scorer
  peer     the harness's HFLM on a LlamaForCausalLM with the same weights, scaled-dot-product attention
what is timed: LM.loglikelihood on the harness's own requests for all documents, tokenisation included
  peer        at batch 1, 8 and 16; the best counts
  stagjax     cold: a new process with an empty compilation cache; cached: a new process that finds its programs in the
              cache, as every evaluation but the first of a model's shape does; compiled: the same process again
what is compared: every log-likelihood and greedy flag, accuracy and perplexity as the harness computes them from both,
  rolling log-likelihoods and greedy generations. A difference above 1e-4 is an error.

--data holds hellaswag/hellaswag_val.jsonl and lambada/lambada_test.jsonl in their official formats

exit status: 0 done and equal   1 numbers differ   2 bad input, or lm_eval, transformers or torch are not installed

example
  python benchmarks/harness.py --data=benchmark_data --json=harness.json
"""


def main() -> int:
    """Run the comparison, or one side of it where the parent asks for that."""
    parser = argparse.ArgumentParser(
        description="Compare stagjax's scorer with lm-evaluation-harness's Hugging Face backend.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=pathlib.Path, required=True, metavar="DIR", help="of the benchmarks' files")
    parser.add_argument("--documents", type=int, default=200, help="of each benchmark (default 200)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each side (default 2)")
    parser.add_argument("--layers", type=int, default=6, help="of the model (default 6)")
    parser.add_argument("--width", type=int, default=256, help="of the model, a multiple of 64 (default 256)")
    parser.add_argument("--max-length", type=int, default=2048, help="of the model (default 2048)")
    parser.add_argument("--threads", type=int, default=2, help="cores for each side (default 2)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write every figure to FILE")
    parser.add_argument("--side", choices=("stagjax", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ("documents", "rounds", "layers", "width", "max_length", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}={getattr(args, name)} must be at least 1")
    if args.width % 64:
        parser.error(f"--width={args.width} is no multiple of 64, the width of a head")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"harness: {', '.join(missing)} not installed: pip install .[benchmarks]", file=sys.stderr)
        return 2
    for name in FILES.values():
        if not (args.data / name).is_file():
            print(f"harness: --data={args.data} has no {name}; give the benchmarks' directory", file=sys.stderr)
            return 2
    if args.side:
        serve(args)
        return 0
    results = compare(args)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    return report(results)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Let the sides take turns; return [seconds, CPU seconds] by benchmark and way, and how far numbers are apart."""
    seconds: dict[str, dict[str, list[list[float]]]] = {name: {} for name in FILES}
    answers: dict[str, dict[str, Any]] = {}
    with contextlib.closing(Side("peer", args)) as peer:
        for round_ in range(args.rounds):
            with tempfile.TemporaryDirectory() as cache:
                for ways in (("cold",), ("cached", "compiled")):
                    with contextlib.closing(Side("stagjax", args, JAX_COMPILATION_CACHE_DIR=cache)) as ours:
                        for name in FILES:
                            for way in ways:
                                taken = ours.ask(name)
                                _add(seconds[name], way, taken)
                                answers.setdefault(name, {})["stagjax"] = taken
                        if round_ == 0 and way == "compiled":
                            for name in OTHER_KINDS:
                                answers.setdefault(name, {})["stagjax"] = ours.ask(name)
            for name in FILES:
                for batch in BATCHES:
                    taken = peer.ask(name, batch)
                    _add(seconds[name], f"batch {batch}", taken)
                    answers[name]["peer"] = taken
        for name in OTHER_KINDS:
            answers[name]["peer"] = peer.ask(name)
    return {
        "seconds": seconds,
        "differences": {name: difference(**sides) for name, sides in answers.items()},
        "metrics": {name: {side: taken["metrics"] for side, taken in answers[name].items()} for name in FILES},
        "documents": {name: answers[name]["peer"]["documents"] for name in FILES},
        "environment": environment(args),
    }


def _add(ways: dict[str, list[list[float]]], way: str, taken: dict[str, Any]) -> None:
    ways.setdefault(way, []).append([taken["seconds"], taken["cpu_seconds"]])


def difference(stagjax: dict[str, Any], peer: dict[str, Any]) -> dict[str, float]:
    """Return the largest relative difference of numbers, and how many other answers differ."""
    numbers = [(a, b) for a, b in zip(stagjax["numbers"], peer["numbers"], strict=True)]
    return {
        "relative": max((abs(a - b) / max(1.0, abs(b)) for a, b in numbers), default=0.0),
        "unequal": sum(a != b for a, b in zip(stagjax["others"], peer["others"], strict=True)),
        "compared": max(len(numbers), len(peer["others"])),
    }


def report(results: dict[str, Any]) -> int:
    """Print the table; return the exit status."""
    import rich.box
    import rich.console
    import rich.table

    table = rich.table.Table(title="stagjax beside lm-evaluation-harness's HFLM", box=rich.box.SIMPLE_HEAD)
    for title in ("documents a second", "batch 1", "batch 8", "batch 16", "cold", "cached", "compiled"):
        table.add_column(title, justify="left" if title == "documents a second" else "right")
    for name, ways in results["seconds"].items():
        for kind, title in enumerate((name, "  by CPU time")):
            # CPU time says what a run costs where other processes take turns with it.
            rate = {
                way: results["documents"][name] / statistics.median(both[kind] for both in taken)
                for way, taken in ways.items()
            }
            best = max(rate[f"batch {batch}"] for batch in BATCHES)
            theirs = [f"{rate[f'batch {batch}']:.2f}" for batch in BATCHES]
            ours = [f"{rate[way]:.2f} ({rate[way] / best:.2f}x)" for way in ("cold", "cached", "compiled")]
            table.add_row(title, *theirs, *ours)
    console = rich.console.Console()
    console.print(table)
    for name, found in results["differences"].items():
        console.print(
            f"{name}: of {found['compared']} answers the largest relative difference is {found['relative']:.1e}, "
            f"{found['unequal']} texts or greedy flags differ"
        )
    for name, sides in results["metrics"].items():
        console.print(f"{name}, stagjax: {sides['stagjax']}, peer: {sides['peer']}")
    where = results["environment"]
    versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
    console.print(
        f"Medians of {where['rounds']} rounds; x: times the best batch of the peer. {where['cpu']}, {where['threads']} "
        f"threads a side, load {where['load_average']:.1f} at the end. {versions}."
    )
    return int(any(found["relative"] > TOLERANCE or found["unequal"] for found in results["differences"].values()))


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures depend on: the model, hardware, threads, versions."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    shape = {name: getattr(args, name) for name in ("layers", "width", "max_length", "rounds", "threads")}
    versions = {package: importlib.metadata.version(package) for package in PACKAGES}
    return shape | {"cpu": model, "load_average": os.getloadavg()[0], "versions": versions}


class Side:
    """One side's process."""

    def __init__(self, side: str, args: argparse.Namespace, **variables: str):
        self._side = side
        command = [sys.executable, __file__, f"--side={side}", f"--data={args.data}"]
        for name in ("documents", "layers", "width", "max_length", "threads"):
            command.append(f"--{name.replace('_', '-')}={getattr(args, name)}")
        offline = {
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }
        environment = os.environ | offline | variables
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def ask(self, name: str, batch: int = BATCHES[-1]) -> dict[str, Any]:
        """Return what `serve` answers."""
        print(json.dumps([name, batch]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the process of {self._side} ended in {name}; its own message stands above")
        reply = json.loads(answer)
        took = f": {reply['seconds']:.1f} s" if "seconds" in reply else ""
        print(
            f"harness: {self._side}, {name}{f', batch {batch}' if self._side == 'peer' else ''}{took}", file=sys.stderr
        )
        return reply


def serve(args: argparse.Namespace) -> None:
    """Answer the parent's questions, a line each: which requests, in which batches (of the peer)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    # The harness prints; the parent reads answers only.
    out, sys.stdout = sys.stdout, sys.stderr
    from hugging_face_twin import baseline

    lm = baseline(args.layers, args.width, args.max_length)
    answer = _ours(lm) if args.side == "stagjax" else _peer(lm, args.threads)
    tasks = {name: _task(name, args) for name in FILES}
    for line in sys.stdin:
        name, batch = json.loads(line)
        reply = _timed(tasks[name], answer("loglikelihood", batch)) if name in FILES else _other(name, tasks, answer)
        print(json.dumps(reply), file=out, flush=True)


Answer = Callable[[str, int], Callable[[list], list]]


def _ours(lm: Any) -> Answer:
    from harness_model import StagjaxLM

    from stagjax.distributed import start_up

    start_up()
    model = StagjaxLM(lm)
    return lambda kind, batch: getattr(model, kind)


def _peer(lm: Any, threads: int) -> Answer:
    import torch
    from hugging_face_twin import byte_tokenizer, twin
    from lm_eval.models.huggingface import HFLM

    torch.set_num_threads(threads)
    model, tokenizer = twin(lm.config.model, lm.params), byte_tokenizer()

    def answer(kind: str, batch: int) -> Callable[[list], list]:
        # The rolling likelihood puts the prefix itself; with a BOS from the tokenizer there would be two.
        bos = kind != "loglikelihood_rolling"
        peer = HFLM(model, tokenizer=tokenizer, batch_size=batch, device="cpu", add_bos_token=bos)
        return lambda requests: getattr(peer, kind)(requests, disable_tqdm=True)

    return answer


def _timed(task: Any, answer: Callable[[list], list]) -> dict[str, Any]:
    """Return seconds, answers, and what the harness makes of them."""
    requests = task.instances
    start, start_cpu = time.perf_counter(), time.process_time()
    answers = answer(requests)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "numbers": [logprob for logprob, _ in answers],
        "others": [bool(is_greedy) for _, is_greedy in answers],
        "documents": len({request.doc_id for request in requests}),
        "metrics": _metrics(task, answers),
    }


def _metrics(task: Any, answers: list[tuple[float, bool]]) -> dict[str, float]:
    """Return the aggregates that the harness computes of answers."""
    from harness_model import is_new

    if is_new():  # answers go into the requests
        for request, answer in zip(task.instances, answers, strict=True):
            request.resps = [answer]
        task.process_instances()
        found, _ = task.aggregate(bootstrap_iters=0)
        return {name: float(value) for name, value in found.items() if "stderr" not in name}
    of_document: dict[int, list] = {}
    documents = {}
    for request, answer in zip(task.instances, answers, strict=True):
        of_document.setdefault(request.doc_id, []).append(answer)
        documents[request.doc_id] = request.doc
    values: dict[str, list] = {}
    for number, found in of_document.items():
        for metric, value in task.process_results(documents[number], found).items():
            values.setdefault(metric, []).append(value)
    return {metric: float(task.aggregation()[metric](taken)) for metric, taken in values.items()}


def _other(name: str, tasks: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """Return documents' rolling log-likelihoods, or greedy generations up to a line's end."""
    from harness_model import is_new

    texts = [request.args[0] + request.args[1] for request in tasks["lambada_openai"].instances]
    if name == "rolling":
        # Long enough for several windows of the model's length.
        documents = [" ".join(texts[:8]), " ".join(texts[-12:]), texts[0], texts[-1]]
        # 0.5 puts an empty context before a document.
        before = ("",) if is_new() else ()
        requests = [_instance("loglikelihood_rolling", n, (*before, text)) for n, text in enumerate(documents)]
        found = answer("loglikelihood_rolling", 1)(requests)
        return {"numbers": [number for number, _ in found] if is_new() else found, "others": []}
    options = {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False}
    requests = [_instance("generate_until", n, (text, dict(options))) for n, text in enumerate(texts[:6])]
    return {"numbers": [], "others": answer("generate_until", 2)(requests)}


def _instance(kind: str, number: int, arguments: tuple) -> Any:
    """Return one of the harness's requests; its 0.5 wants names of task and document, which 0.4 takes as well."""
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=number, task_name="other", doc_id=number)


def _task(name: str, args: argparse.Namespace) -> Any:
    """Return the harness's own task, on a file instead of a hub, with its requests built."""
    from harness_model import is_new
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks.hellaswag.utils import process_docs

    of_task = {
        "hellaswag": {
            "output_type": "multiple_choice",
            "process_docs": process_docs,
            "doc_to_text": "{{query}}",
            "doc_to_target": "{{label}}",
            "doc_to_choice": "choices",
            "metric_list": [{"metric": "acc", "aggregation": "mean"}, {"metric": "acc_norm", "aggregation": "mean"}],
        },
        "lambada_openai": {
            "output_type": "loglikelihood",
            "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
            "doc_to_target": "{{' '+text.split(' ')[-1]}}",
            "metric_list": [
                {"metric": "perplexity", "aggregation": "perplexity"},
                {"metric": "acc", "aggregation": "mean"},
            ],
        },
    }[name]
    files = {"data_files": {"test": str((args.data / FILES[name]).resolve())}}
    config = {"task": name, "dataset_path": "json", "dataset_kwargs": files, "test_split": "test"} | of_task
    # 0.5 has a class for each kind of request.
    task = ConfigurableTask.from_config(config) if is_new() else ConfigurableTask(config=config)
    task.build_all_requests(limit=args.documents, rank=0, world_size=1)
    return task


if __name__ == "__main__":
    sys.exit(main())
