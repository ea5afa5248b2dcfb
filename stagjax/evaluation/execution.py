"""Answers that are programs, and their tests: which samples pass, and pass@k from how many did."""

import math
from collections.abc import Callable, Sequence

from stagjax.errors import UserError
from stagjax.evaluation import sandbox


def run_samples(
    samples: Sequence[Sequence[str]],
    tests: Sequence[str],
    limits: sandbox.Limits | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    workers: int | None = None,
) -> list[list[sandbox.Outcome]]:
    """Run every sample followed by its problem's tests; return what became of each, nested as `samples` are.

    The program is that of EleutherAI's harness: the sample, a newline, the tests. Equal programs are run once.

    Args:
      samples: of each problem, the texts that a model wrote.
      tests: of each problem, statements that raise where a sample is wrong.
      limits: for each program.
      on_progress: called with the number of programs done and of all.
      workers: programs at the same time; by default one for each core.

    Raises:
      UserError: nothing isolates programs here (see `sandbox.find_isolation`).
      RunFailed: the sandbox itself broke down.
    """
    texts = [[f"{sample}\n{test}" for sample in those] for those, test in zip(samples, tests, strict=True)]
    programs = list(dict.fromkeys(text for those in texts for text in those))
    report = on_progress and (lambda done: on_progress(done, len(programs)))
    outcomes = dict(zip(programs, sandbox.run_programs(programs, limits, report, workers), strict=True))
    return [[outcomes[text] for text in those] for those in texts]


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of the probability that at least one of k samples passes.

    It is one minus the share of sets of k samples none of which passed (Chen et al., 2021, "Evaluating Large Language
    Models Trained on Code", section 2.1), computed exactly.

    Args:
      samples: drawn of one problem.
      passed: of them.
      k: at most `samples`.

    Raises:
      UserError: fewer samples than k.
    """
    if not 1 <= k <= samples:
        raise UserError(
            f"pass@{k} needs at least {max(k, 1)} samples of each problem and k of 1 or more, not {samples}"
        )
    if not 0 <= passed <= samples:
        raise ValueError(f"{passed} of {samples} samples cannot have passed")
    return 1 - math.comb(samples - passed, k) / math.comb(samples, k)
