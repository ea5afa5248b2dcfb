"""Time stagjax beside Hugging Face transformers on PyTorch: the same model, on the same cores, taking turns.

Each side runs in a process of its own. The parent asks them in turn, so that whatever else the machine does, and its
clock, falls on both alike; the ratio is that of the medians.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parent.parent

EPILOG = """\
the model: 6 layers, width 256 (4 heads of 64), GeGLU of 1024, 259 ids, tied embeddings, float32
  stagjax  num_stacks=1, decoded by stagjax's Decoder, trained by its training step, with layers unrolled
  peer     LlamaForCausalLM, hidden_act="gelu_pytorch_tanh", scaled-dot-product attention
what is timed, each after warm-up
  decode   a prompt of 32 tokens and 223 new ones, batch 1, greedy: the whole call, over the new tokens
  train    8 rows of 512 tokens: forward, backward, clipping, AdamW (PyTorch's fused one)
threads
  Both processes are bound to the first --threads cores they may use: XLA sizes its thread pools by that, and PyTorch is
  told the same number. A process that waits for its turn computes nothing.

exit status: 0 done   2 bad input, or transformers and torch are not installed

example
  python benchmarks/peers.py --skip-training --repeats=20 --json=peers.json
"""


class Sizes(NamedTuple):
    """Of the model, and of what is timed."""

    layers: int
    width: int
    prompt: int
    new_tokens: int
    batch: int
    length: int

    def shape(self, stacks: int = 1) -> dict[str, Any]:
        """Return the model's fields, the layers dealt to `stacks`."""
        heads = self.width // 64
        shape = {"vocab_size": 259, "model_dim": self.width, "num_heads": heads, "num_kv_heads": heads, "head_dim": 64}
        shape |= {"ff_dim": 4 * self.width, "layers_per_stack": self.layers // stacks, "max_length": self.length}
        return shape | {"num_stacks": stacks}


PUBLISHED = Sizes(layers=6, width=256, prompt=32, new_tokens=223, batch=8, length=512)
TINY = Sizes(layers=2, width=64, prompt=4, new_tokens=8, batch=1, length=32)
LIMITS = """\
What limits stagjax: decoding reads all weights (25 MB) for every token, in matrix-vector products that XLA runs on one
core. Training: matrix products are over half of the work, the rest is passes over activations and attention scores."""
PACKAGES = {"stagjax": ("jax", "jaxlib", "flax"), "peer": ("torch", "transformers")}


def main() -> int:
    """Run the benchmark, or one side of it where the parent asks for that."""
    parser = argparse.ArgumentParser(
        description="Compare the CPU speed of stagjax with that of Hugging Face transformers on PyTorch.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=10, help="turns of each side in decoding (default 10)")
    parser.add_argument("--train-repeats", type=int, default=5, help="turns of each side in training (default 5)")
    parser.add_argument("--threads", type=int, default=2, help="cores for each side (default 2)")
    parser.add_argument("--skip-training", action="store_true", help="time decoding only (well under a minute)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: to see that it runs, not how fast")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write every figure and sample to FILE")
    parser.add_argument("--side", choices=("stagjax", "peer"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    for name in ("repeats", "train_repeats", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')}={getattr(args, name)} must be at least 1")
    if args.side:
        serve(args.side, args.threads, TINY if args.tiny else PUBLISHED)
        return 0
    if any(importlib.util.find_spec(name) is None for name in PACKAGES["peer"]):
        print("peers: transformers and torch are not installed: pip install .[benchmarks]", file=sys.stderr)
        return 2
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    if args.threads > cores:
        print(f"peers: --threads={args.threads} is over the {cores} cores to bind to (Linux only)", file=sys.stderr)
        return 2
    results = compare(args)
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")
    report(results)
    return 0


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Let the sides take turns; return the samples in seconds by task and side, and where they were taken."""
    tasks = {"decode": ("stagjax", "peer"), "decode_two_stacks": ("stagjax",), "train": ("stagjax", "peer")}
    if args.skip_training:
        del tasks["train"]
    sides = {name: _start(name, args) for name in PACKAGES}
    samples: dict[str, dict[str, list[float]]] = {task: {side: [] for side in tasks[task]} for task in tasks}
    try:
        # The two decoding tasks take turns with each other too: they are compared.
        for group, repeats in ((("decode", "decode_two_stacks"), args.repeats), (("train",), args.train_repeats)):
            turns = [(task, side) for task in group if task in tasks for side in tasks[task]]
            for _ in range(repeats):
                for task, side in turns:
                    samples[task][side].append(_ask(sides[side], side, task))
    finally:
        for process in sides.values():
            process.kill()
            process.wait()
    sizes = (TINY if args.tiny else PUBLISHED)._asdict()
    return {"samples": samples, "sizes": sizes, "environment": environment(args.threads)}


def environment(threads: int) -> dict[str, Any]:
    """Return what the figures depend on: hardware, threads, versions."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    packages = [package for side in PACKAGES.values() for package in side]
    return {
        "cpu": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }


def report(results: dict[str, Any]) -> None:
    """Print the table."""
    import rich.box
    import rich.console
    import rich.table

    table = rich.table.Table(title="stagjax beside Hugging Face transformers, CPU, float32", box=rich.box.SIMPLE_HEAD)
    for title in ("", "stagjax", "transformers", "ratio", "spread (ours / theirs)"):
        table.add_column(title, justify="right" if title else "left", no_wrap=not title)
    samples, sizes = results["samples"], Sizes(**results["sizes"])
    middle = {task: {side: statistics.median(taken[side]) for side in taken} for task, taken in samples.items()}

    def row(title: str, task: str, write: Callable[[float], str]) -> None:
        ours, theirs = middle[task]["stagjax"], middle[task]["peer"]
        spreads = f"{_spread(samples[task]['stagjax'])} / {_spread(samples[task]['peer'])}"
        table.add_row(title, write(ours), write(theirs), f"{theirs / ours:.2f}", spreads)

    row("decode, ms/token", "decode", lambda seconds: f"{seconds / sizes.new_tokens * 1e3:.2f}")
    two, one = middle["decode_two_stacks"]["stagjax"], middle["decode"]["stagjax"]
    spread, per_token = _spread(samples["decode_two_stacks"]["stagjax"]), f"{two / sizes.new_tokens * 1e3:.2f}"
    table.add_row(f"  2 stacks of {sizes.layers // 2} layers", per_token, "", f"({one / two:.2f} of baseline)", spread)
    if "train" in samples:
        row("train, tokens/s", "train", lambda seconds: f"{sizes.batch * sizes.length / seconds:,.0f}")
    where = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    console = rich.console.Console()
    console.print(table)
    console.print(
        f"A ratio over 1: stagjax is that many times as fast (medians). {where['cpu']}, {where['cores']} cores, "
        f"{where['threads']} threads a side, load {where['load_average']:.1f} at the end. {versions}.\n{LIMITS}"
    )
    if where["load_average"] > where["threads"] + 1:
        console.print("Other programs were running: PyTorch's threads wait for each other and suffer most.")


def serve(side: str, threads: int, sizes: Sizes) -> None:
    """Bind this process to `threads` cores, then run the tasks named on stdin, printing the seconds of each."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    prepare = {"stagjax": _stagjax_tasks, "peer": _peer_tasks}[side](threads, sizes)
    ready: dict[str, Callable[[], None]] = {}
    for line in sys.stdin:
        task = line.strip()
        if task not in ready:
            ready[task] = prepare[task]()
            for _ in range(2):
                ready[task]()
        started = time.perf_counter()
        ready[task]()
        print(time.perf_counter() - started, flush=True)


def _stagjax_tasks(threads: int, sizes: Sizes) -> dict[str, Callable[[], Callable[[], None]]]:
    """Return what prepares each task; XLA takes its threads from the process's cores."""
    sys.path.insert(0, str(ROOT))
    from stagjax.host_memory import keep_host_memory

    keep_host_memory()  # as `stagjax train` does, before JAX starts
    import jax
    import numpy as np

    from stagjax.config import Config, DataConfig, ModelConfig, TrainingConfig
    from stagjax.decoding.loop import Decoder
    from stagjax.decoding.placement import make_placement
    from stagjax.decoding.sampling import Sampling
    from stagjax.model.stagformer import init_params
    from stagjax.training.state import create_state
    from stagjax.training.step import make_train_step

    def decode(stacks: int) -> Callable[[], None]:
        config = ModelConfig(**sizes.shape(stacks))
        decoder = Decoder(make_placement(config), init_params(config, jax.random.key(0)))
        prompt_BT, keys_B = np.arange(3, 3 + sizes.prompt, dtype=np.int32)[None], jax.random.split(jax.random.key(0), 1)

        def run() -> None:
            chunks = decoder.chunks(
                prompt_BT, np.zeros(1, np.int32), sizes.new_tokens, Sampling(), keys_B, stop_id=None
            )
            assert sum(len(chunk.tokens_nB) for chunk in chunks) == sizes.new_tokens

        return run

    def train() -> Callable[[], None]:
        model, data = ModelConfig(**sizes.shape()), DataConfig(row_length=sizes.length)
        config = Config(model, data, TrainingConfig(scan_layers=False))
        state = create_state(config)
        step = jax.jit(make_train_step(config), donate_argnums=0)
        tokens_BT = np.random.default_rng(0).integers(3, model.vocab_size, (sizes.batch, sizes.length), np.int32)
        batch = {"inputs": tokens_BT, "targets": np.roll(tokens_BT, -1, axis=1), "segment_ids": np.ones_like(tokens_BT)}
        batch["positions"] = np.broadcast_to(np.arange(sizes.length, dtype=np.int32), tokens_BT.shape)
        batch["loss_weights"] = np.ones(tokens_BT.shape, np.float32)
        byte_lengths_V = np.ones(model.vocab_size, np.float32)

        def run() -> None:
            nonlocal state
            state, metrics = jax.block_until_ready(step(state, batch, byte_lengths_V))
            assert np.isfinite(metrics["loss"])

        return run

    return {"decode": lambda: decode(1), "decode_two_stacks": lambda: decode(2), "train": train}


def _peer_tasks(threads: int, sizes: Sizes) -> dict[str, Callable[[], Callable[[], None]]]:
    """Return what prepares each task."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape = sizes.shape()
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["model_dim"],
            intermediate_size=shape["ff_dim"],
            num_hidden_layers=shape["layers_per_stack"],
            num_attention_heads=shape["num_heads"],
            num_key_value_heads=shape["num_kv_heads"],
            hidden_act="gelu_pytorch_tanh",
            tie_word_embeddings=True,
            max_position_embeddings=shape["max_length"],
            attn_implementation="sdpa",
            eos_token_id=None,
            pad_token_id=0,
        )
    )

    def decode() -> Callable[[], None]:
        model.eval()
        prompt, mask = torch.arange(3, 3 + sizes.prompt)[None], torch.ones((1, sizes.prompt), dtype=torch.long)

        def run() -> None:
            with torch.inference_mode():
                ids = model.generate(prompt, attention_mask=mask, max_new_tokens=sizes.new_tokens, do_sample=False)
            assert ids.shape[1] == sizes.prompt + sizes.new_tokens

        return run

    def train() -> Callable[[], None]:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        tokens = torch.randint(3, shape["vocab_size"], (sizes.batch, sizes.length))
        targets = torch.roll(tokens, -1, dims=1)

        def run() -> None:
            logits = model(tokens, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            assert torch.isfinite(loss)

        return run

    return {"decode": decode, "train": train}


def _start(side: str, args: argparse.Namespace) -> subprocess.Popen:
    command = [sys.executable, __file__, f"--side={side}", f"--threads={args.threads}", *(["--tiny"] * args.tiny)]
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _ask(process: subprocess.Popen, side: str, task: str) -> float:
    print(task, file=process.stdin, flush=True)
    answer = process.stdout.readline()
    if not answer:
        raise RuntimeError(f"the process of {side} ended in {task}; its own message stands above")
    return float(answer)


def _spread(seconds: list[float]) -> str:
    middle = statistics.median(seconds)
    return f"{min(seconds) / middle - 1:+.0%} to {max(seconds) / middle - 1:+.0%}"


if __name__ == "__main__":
    sys.exit(main())
