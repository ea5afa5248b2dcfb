"""`stagjax generate`: continue prompts with a trained model."""

import argparse
import json
import pathlib
import sys
import time
from typing import Any

from stagjax.cli import count, number
from stagjax.files import directory, read_text, text_lines
from stagjax.printable import for_terminal
from stagjax.rules import SEED, TEMPERATURE, TOP_P

EPILOG = """\
examples:
  stagjax generate --workdir=runs/separate --prompt='def main('
  stagjax generate --workdir=runs/separate --prompt='import ' --temperature=0.8 --top-p=0.95 --seed=1 --stop=$'\\n\\n'
  stagjax generate --workdir=runs/shared --prompts-file=prompts.txt --decoding=recurrent --json=out.json

A prompts file holds one prompt a line, or, if its name ends in .jsonl, one {"prompt": "..."} a line; blank lines are
passed over, and only newlines end a line. All prompts are decoded as one batch. The model's own end of document always
ends a row. On a terminal control characters are shown escaped; in a file, a pipe or --json they are as they are.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--workdir", required=True, type=directory, metavar="DIR", help="of a stagjax train run, or an export"
    )
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", action="append", metavar="TEXT", help="may be given several times")
    prompts.add_argument("--prompts-file", type=pathlib.Path, metavar="FILE", help="one prompt a line, or .jsonl")
    parser.add_argument(
        "--checkpoint", metavar="best|latest|STEP", help="default: best, or latest if none was validated"
    )
    parser.add_argument("--max-new-tokens", type=count, default=128, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--decoding",
        default="parallel",
        metavar="MODE",
        help="parallel (all stacks at once, the default), sequential (the slow reference), "
        "recurrent (shared weights: one pass a token)",
    )
    parser.add_argument(
        "--mesh",
        default="",
        metavar="stack=P,tensor=N",
        help="decode on several devices: stack=P gives each of P stacks a slice of its own, tensor=N divides each "
        "slice's layers over N devices, data=G the rows over G groups; default: one device",
    )
    parser.add_argument(
        "--temperature", type=number(TEMPERATURE), default=0.0, help="0 is greedy, the default; 1 the model as it is"
    )
    parser.add_argument("--top-k", type=count, metavar="K", help="keep the K most probable tokens")
    parser.add_argument("--top-p", type=number(TOP_P), metavar="P", help="keep the most probable tokens that sum to P")
    parser.add_argument("--seed", type=number(SEED), default=0, help="of the sampling noise, default: %(default)s")
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends a row; may be given several times"
    )
    parser.add_argument("--chunk", type=count, default=32, metavar="N", help="tokens a compiled call, at most 32")
    parser.add_argument("--logprobs", action="store_true", help="print the tokens' log-probabilities")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write everything to FILE as JSON")


def run(args: argparse.Namespace) -> None:
    """Load, decode, print; the text of a single prompt is streamed."""
    from stagjax.cli import checkpoint_step, refuse_overrides

    refuse_overrides(args)
    prompts = args.prompt if args.prompt is not None else _read_prompts(args.prompts_file)

    from stagjax.distributed import start_up
    from stagjax.library import load

    start_up()
    lm = load(args.workdir, checkpoint_step(args.checkpoint), args.mesh)
    streamed = len(prompts) == 1
    unwritten = prompts[:1]  # the prompt goes before the first text, once it is known to be a good one

    shown = for_terminal if sys.stdout.isatty() else str

    def stream(text: str) -> None:
        sys.stdout.write(shown("".join([*unwritten, text])))
        sys.stdout.flush()
        unwritten.clear()

    begun = time.perf_counter()
    results = lm.generate(
        prompts,
        args.max_new_tokens,
        decoding=args.decoding,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        stop=args.stop,
        chunk=args.chunk,
        on_text=(lambda _, text: stream(text)) if streamed else None,
    )
    seconds = time.perf_counter() - begun
    if streamed:
        stream("\n")
    for index, result in enumerate(results):
        if not streamed:
            print(f"--- prompt {index + 1}\n{shown(result.prompt + result.text)}")
        if args.logprobs:
            for id_, logprob in zip(result.ids, result.logprobs, strict=True):
                print(f"{id_:>8} {logprob:9.4f}  {lm.vocabulary.pieces[id_]!r}")
    drawn = sum(len(result.ids) for result in results)
    reasons = ", ".join(sorted({result.stop_reason for result in results}))
    print(
        f"[{len(results)} row(s), {drawn} tokens in {seconds:.1f} s with compilation; ended by: {reasons}; "
        f"checkpoint {lm.step}]",
        file=sys.stderr,
    )
    if args.json:
        _write_json(args.json, lm.step, args, results)


def _read_prompts(path: pathlib.Path) -> list[str]:
    from stagjax.errors import UserError

    try:
        lines = [(number, line) for number, line in enumerate(text_lines(read_text(path)), 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts-file={path} cannot be read: {error}; give a UTF-8 text file") from error
    if path.suffix != ".jsonl":
        prompts = [line for _, line in lines]
    else:
        prompts = []
        for number, line in lines:
            try:
                prompt = json.loads(line)["prompt"]
                if not isinstance(prompt, str):
                    raise TypeError("prompt is not a string")
                prompts.append(prompt)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise UserError(f'{path}:{number} is not {{"prompt": "..."}} in JSON; correct the line') from error
    if not prompts:
        raise UserError(f"--prompts-file={path} holds no prompt; write one a line")
    return prompts


def _write_json(path: pathlib.Path, step: int, args: argparse.Namespace, results: list[Any]) -> None:
    from stagjax.files import write_json

    write_json(
        path,
        {
            "checkpoint": step,
            "decoding": args.decoding,
            "seed": args.seed,
            "rows": [vars(result) for result in results],
        },
    )
