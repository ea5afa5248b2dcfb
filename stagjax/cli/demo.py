"""`stagjax demo`: train four small models alike, and compare what they cost and what they learn."""

import argparse
import pathlib
import statistics
import time
from typing import Any

from stagjax.cli import count

VARIANTS = ("baseline_3", "baseline_6", "shared_2x3", "separate_2x3")
PROMPT = "def "
NEW_TOKENS = 192

EPILOG = """\
Trains a baseline of h layers, one of 2h, and two StagFormers of 2 stacks of h layers (shared and separate weights) on
Python's standard library, with the same data and steps; then decodes with each. Writes into --workdir:
  results.json   every figure of the table          samples.txt   a continuation by each model
  losses.png     the learning curves                schedule.png  which stack works on which token when
A demo that was interrupted goes on where it stopped.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--config", default="experiments/stdlib.py", metavar="FILE", help="experiment file, default: %(default)s"
    )
    parser.add_argument("--workdir", default="demo", type=pathlib.Path, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--steps", type=count, default=320, help="of training for each model, default: %(default)s")


def run(args: argparse.Namespace) -> None:
    """Train, decode, and write the table and the pictures."""
    from stagjax.cli import refuse_overrides
    from stagjax.experiment import load_config
    from stagjax.host_memory import keep_host_memory

    keep_host_memory()
    refuse_overrides(args)
    overrides = [
        f"training.steps={args.steps}",
        f"training.warmup_steps={min(20, args.steps)}",
        f"training.validate_every={max(args.steps // 4, 1)}",
        f"training.checkpoint_every={max(args.steps // 4, 1)}",
        "training.validation_rows=96",
        "training.global_batch=4",
    ]
    configs = {name: load_config(f"{args.config}:{name}", overrides) for name in VARIANTS}

    from stagjax.bench.machine import describe
    from stagjax.distributed import start_up
    from stagjax.files import write_json, write_result
    from stagjax.reporting.console import plain, report_console
    from stagjax.reporting.metrics import read_metrics
    from stagjax.reporting.plots import plot_losses, plot_schedule, require_matplotlib
    from stagjax.reporting.tables import demo_table
    from stagjax.training.loop import train

    require_matplotlib()
    start_up()
    begun = time.perf_counter()
    rows, samples = [], []
    console = report_console()
    for name, config in configs.items():
        console.rule(f"{name}: {args.steps} steps")
        train(config, args.workdir / name)
        measured, texts = _decode(name, config, args.workdir / name)
        rows += measured
        samples += texts
    plot_losses({name: read_metrics(args.workdir / name) for name in configs}, args.workdir / "losses.png")
    shown = {
        "baseline of 6 layers": configs["baseline_6"].model,
        "StagFormer, 2 stacks of 3 layers": configs["separate_2x3"].model,
    }
    plot_schedule(shown, args.workdir / "schedule.png")
    write_result(args.workdir / "samples.txt", "\n\n".join(samples) + "\n")
    write_json(args.workdir / "results.json", {"steps": args.steps, "rows": rows, "machine": describe()})
    console.print(demo_table(rows, args.steps))
    seconds = time.perf_counter() - begun
    console.print(plain(f"all of it in {seconds:.0f} s; pictures, samples and results.json are in {args.workdir}"))


def _decode(name: str, config: Any, workdir: pathlib.Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a row of figures for each way to decode a trained model, and a sample of each."""
    from stagjax.decoding.placement import PARALLEL, RECURRENT, can_recur
    from stagjax.library import load
    from stagjax.model.accounting import count_parameters
    from stagjax.reporting.metrics import read_metrics

    lines = read_metrics(workdir)
    lm = load(workdir, "latest")
    rows, samples = [], []
    for mode in (PARALLEL, RECURRENT) if can_recur(config.model) else (PARALLEL,):
        (sample,) = lm.generate(PROMPT, NEW_TOKENS, decoding=mode, temperature=0.7, top_p=0.9, seed=1)
        row = {"model": name, "parameters": count_parameters(config.model).total}
        if mode == PARALLEL:
            row["training_tokens_per_second"] = statistics.median(_values(lines, "train/tokens_per_second"))
            row["validation_bits_per_byte"] = _values(lines, "validation/bits_per_byte")[-1]
        else:
            # The same weights, decoded otherwise: nothing was trained for this row, and its score is its own.
            row["model"] += ", recurrent decoding"
            row["validation_bits_per_byte"] = _recurrent_bits_per_byte(lm)
        rows.append(row | {"decode_ms_per_token": _milliseconds_per_token(lm, mode)})
        samples.append(f"--- {rows[-1]['model']}\n{sample.prompt}{sample.text}")
    return rows, samples


def _milliseconds_per_token(lm: Any, mode: str) -> float:
    """Return the median over five calls of the time between the first token and the last, a token."""
    import numpy as np

    from stagjax.data.vocabulary import BOS
    from stagjax.decoding.generation import row_keys
    from stagjax.decoding.loop import Decoder
    from stagjax.decoding.placement import make_placement
    from stagjax.decoding.sampling import Sampling

    decoder = Decoder(make_placement(lm.config.model, mode=mode), lm.params, lm.vocabulary.size)
    prompt = [BOS, *lm.vocabulary.encode(PROMPT)]
    tokens_BT, starts_B = np.asarray([prompt], np.int32), np.zeros(1, np.int32)
    figures = []
    for _ in range(6):
        chunks = decoder.chunks(tokens_BT, starts_B, NEW_TOKENS, Sampling(), row_keys([prompt], 0), None)
        next(chunks)
        begun = time.perf_counter()
        drawn = sum(len(chunk.tokens_nB) for chunk in chunks)
        figures.append(1e3 * (time.perf_counter() - begun) / drawn)
    return statistics.median(figures[1:])  # the first call compiles


def _recurrent_bits_per_byte(lm: Any) -> float:
    """Return the score of recurrent decoding, token by token through the decode path from the first token on.

    Over those of the validation rows that hold a single document (nearly all), for a cache holds one document a row.
    """
    import jax
    import numpy as np
    import optax

    from stagjax.data.corpus import load_corpus
    from stagjax.data.loader import validation_batches
    from stagjax.decoding.loop import teacher_forced_logits
    from stagjax.decoding.placement import RECURRENT, make_placement

    corpus = load_corpus(lm.config.data, lm.config.model.vocab_size)
    num_rows = min(lm.config.training.validation_rows or corpus.validation.num_rows, corpus.validation.num_rows)
    (batch,) = validation_batches(corpus.validation, num_rows, num_rows)
    whole = (batch["segment_ids"] == 1).all(axis=1)
    score = jax.jit(teacher_forced_logits, static_argnums=(0, 3))
    placement = make_placement(lm.config.model, mode=RECURRENT)
    logits_BTV = score(placement, lm.params, batch["inputs"][whole], 1)
    nats_BT = optax.softmax_cross_entropy_with_integer_labels(logits_BTV, batch["targets"][whole])
    return float(nats_BT.sum()) / np.log(2) / corpus.vocabulary.byte_lengths[batch["targets"][whole]].sum()


def _values(lines: list[dict[str, Any]], metric: str) -> list[float]:
    return [line[metric] for line in lines if line.get(metric) is not None]
