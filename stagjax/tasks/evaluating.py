"""Benchmarks as seqio tasks: an example for each request, with the ids of the very texts that the scorer reads."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from stagjax.data.vocabulary import load_vocabulary
from stagjax.errors import UserError
from stagjax.tasks.benchmark import Benchmark, Item, data_directory, load
from stagjax.tasks.encoding import request_ids
from stagjax.tasks.pretraining import check_split, refuse_trimming
from stagjax.tasks.requests import GenerationRequest, Loglikelihood, RollingRequest
from stagjax.tasks.seqio_vocabulary import SeqioVocabulary

VALIDATION = "validation"


def register(
    name: str, benchmark: Benchmark, shots: int, directory: str | None = None, vocabulary: str = "bytes"
) -> seqio.Task:
    """Register a benchmark as a task.

    Its examples are {"inputs": int32 ids of BOS and the prompt, "targets": int32 ids of what is scored or expected,
    "request": int32 [document, request of it], "inputs_pretokenized", "targets_pretokenized"}. They have one split,
    under the official name and as "validation", and one order; any other split is refused.

    Args:
      name: of the task.
      benchmark: which.
      shots: examples in a prompt.
      directory: of official files; by default the environment's STAGJAX_DATA_DIR, or data.
      vocabulary: as in an experiment's data.vocabulary.

    Raises:
      UserError: the vocabulary cannot be read. (Data is read, and refused, when examples are asked for.)
      ValueError: the name is taken.
    """
    loaded = load_vocabulary(vocabulary)

    @functools.cache
    def items() -> list[Item]:
        return benchmark.items(load(benchmark, data_directory(directory), pool=shots > 0), shots)

    def examples() -> Iterator[Mapping[str, Any]]:
        for item in items():
            target = benchmark.form.target(item.document)
            for number, request in enumerate(item.requests):
                inputs, targets = request_ids(request, loaded, target if isinstance(target, str) else "")
                yield {
                    "inputs": inputs,
                    "targets": targets,
                    "request": [item.index, number],
                    "inputs_pretokenized": getattr(request, "context", ""),
                    "targets_pretokenized": _text(request, target),
                }

    splits = sorted({VALIDATION, benchmark.evaluated.name})

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        del shuffle_files, seed  # Draws of examples follow the order of documents; seqio shuffles what comes out.
        check_split(name, split, splits)
        ids, text = tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.string)
        return tf.data.Dataset.from_generator(
            examples,
            output_signature={
                "inputs": ids,
                "targets": ids,
                "request": tf.TensorSpec([2], tf.int32),
                "inputs_pretokenized": text,
                "targets_pretokenized": text,
            },
        )

    feature = seqio.Feature(SeqioVocabulary(loaded), add_eos=False)
    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset, splits=splits, caching_permitted=False),
        # seqio would cut long prompts at their right end, where the question is.
        preprocessors=[refuse_trimming],
        output_features={"inputs": feature, "targets": feature},
        postprocess_fn=_request_of,
        metric_fns=[metric(benchmark, items)] if benchmark.form.scored else [],
    )


def metric(benchmark: Benchmark, items: Callable[[], Sequence[Item]]) -> Callable[..., dict[str, float]]:
    """Return the benchmark's metrics as seqio wants them: of the answers to all requests.

    "scores" are log-probabilities, or a pair of them and of {"is_greedy": a flag for each}, what a score_fn of seqio's
    evaluator returns with intermediates; without flags there is no accuracy of LAMBADA.

    Raises:
      UserError: a document of which some requests only were scored.
    """

    def metrics(targets: Sequence[tuple[int, int, int]], scores: Any) -> dict[str, float]:
        scores, others = scores if isinstance(scores, tuple) else (scores, {})
        greedy = others.get("is_greedy", [None] * len(scores))
        answers: dict[int, dict[int, Loglikelihood]] = {}
        for (document, request, num_tokens), score, flag in zip(targets, scores, greedy, strict=True):
            flag = None if flag is None else bool(flag)
            answers.setdefault(document, {})[request] = Loglikelihood(float(score), flag, num_tokens)
        scored = []
        for number, found in sorted(answers.items()):
            item = items()[number]
            if len(found) < len(item.requests):
                raise UserError(
                    f"{benchmark.name}: {len(found)} of the {len(item.requests)} requests of document {number} were "
                    "scored; score all examples (num_examples=None, no shard_info), or a number that ends a document"
                )
            scored.append(benchmark.score(item.document, [found[request] for request in sorted(found)]))
        return {name: estimate.value for name, estimate in benchmark.aggregate(scored).items()}

    return metrics


def register_mixture(name: str, members: Sequence[str]) -> seqio.Mixture:
    """Register a mixture of tasks, all with the same rate."""
    return seqio.MixtureRegistry.add(name, list(members), default_rate=1.0)


def task_name(benchmark: Benchmark, shots: int | None, directory: str | None, vocabulary: str) -> str:
    """Return e.g. "hellaswag", "hellaswag_5_shot"; a hash follows where data or vocabulary are not the default ones."""
    name = benchmark.name if shots is None or shots == benchmark.shots else f"{benchmark.name}_{shots}_shot"
    return f"{name}{_suffix(directory, vocabulary)}"


def mixture_name(group: str, shots: int | None, directory: str | None, vocabulary: str) -> str:
    """Return the same for a group of benchmarks."""
    return f"{group if shots is None else f'{group}_{shots}_shot'}{_suffix(directory, vocabulary)}"


def _text(request: Any, target: int | str) -> str:
    if isinstance(request, GenerationRequest):
        return target if isinstance(target, str) else ""
    return request.text if isinstance(request, RollingRequest) else request.continuation


def _request_of(decoded: Any, example: Mapping[str, Any] | None = None, is_target: bool = False) -> Any:
    """Return which request a target belongs to and its number of tokens; model outputs as they are."""
    if not is_target:
        return decoded
    document, request = np.asarray(example["request"]).tolist()
    return document, request, len(example["targets"])


def _suffix(directory: str | None, vocabulary: str) -> str:
    if directory is None and vocabulary == "bytes":
        return ""
    text = f"{directory}\0{load_vocabulary(vocabulary).fingerprint}"
    return f"_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
