#!/usr/bin/env bash
# seqio 0.0.20: a task whose data come from a function of the documented signature cannot be evaluated, and splits that
# do not exist are read.
#
# `FunctionDataSource` takes dataset_fn(split, shuffle_files), "and optionally the variable seed". `get_dataset` without a
# seed works. `seqio.Evaluator` hands on its default, seed=42, even where nothing is shuffled, and then the function has to
# have the third argument: "'dataset' must have initial args ('split', 'shuffle_files', 'seed')". A task that every test of
# its own passes so fails at its first evaluation. Besides, `Task.get_dataset(split=...)`, "train" by default, is not
# compared with the splits that the source declares: a function that serves one split gives its validation data as "train".
# Seen: both. Ends with 1 if either changes. (Some gigabytes are installed.)
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet seqio==0.0.20 tensorflow==2.21.0 tensorflow-text==2.21.1 tensorflow-datasets==4.9.10 \
    importlib_resources
JAX_PLATFORMS=cpu TF_CPP_MIN_LOG_LEVEL=3 "$place/venv/bin/python" - <<'PYTHON'
import sys

import seqio
import tensorflow as tf


def dataset(split, shuffle_files=False):
    return tf.data.Dataset.from_tensor_slices({"targets": tf.constant([[5, 6, 7]], tf.int32)})


seqio.TaskRegistry.add(
    "one_split",
    source=seqio.FunctionDataSource(dataset, splits=["validation"]),
    preprocessors=[],
    output_features={"targets": seqio.Feature(seqio.ByteVocabulary(), add_eos=False)},
    metric_fns=[lambda targets, scores: {"sum": sum(scores)}],
)
task = seqio.TaskRegistry.get("one_split")
read = lambda split, **options: len(list(task.get_dataset(None, split=split, shuffle=False, **options)))
print("examples of validation, without a seed:", read("validation"))
try:
    seqio.Evaluator("one_split", seqio.LMFeatureConverter(pack=False))
    refused = ""
except ValueError as error:
    refused = str(error)
print("seqio.Evaluator with its defaults:", refused or "made")
try:
    undeclared = read("train")
except Exception as error:
    undeclared = f"refused: {error}"
print("examples of train, which the source does not declare:", undeclared)
sys.exit(0 if "must have initial args" in refused and undeclared == 1 else 1)
PYTHON
