"""Which documents become the examples of a few-shot prompt: the draws of EleutherAI's harness, reproduced."""

import random
from collections.abc import Sequence
from typing import Literal

from stagjax.errors import UserError
from stagjax.tasks.records import Document

SEED = 1234

# How examples are drawn from the pool. "other": one more than asked for, then the evaluated document is dropped if it
# is among them (the harness's rule for benchmarks without a test split). "any": as many as asked for. "first": the
# first ones, in order.
Draw = Literal["other", "any", "first"]


class Sampler:
    """Draws for one document after the other from one running generator, so that the order of documents matters."""

    def __init__(self, pool: Sequence[Document], shots: int, draw: Draw = "other", seed: int = SEED):
        """Prepare to draw.

        Args:
          pool: documents to draw from.
          shots: examples wanted.
          draw: the rule.
          seed: of the generator.

        Raises:
          UserError: a negative number of examples, or more than the pool has.
        """
        if shots < 0:
            raise UserError(f"shots={shots} is below 0; use 0 or more")
        needed = shots + 1 if draw == "other" and shots else shots
        if needed > len(pool):
            most = max(0, len(pool) - (draw == "other"))
            raise UserError(
                f"shots={shots} needs {needed} examples to draw from, and there are {len(pool)}; use {most} or fewer"
            )
        self._pool, self._shots, self._draw = pool, shots, draw
        self._random = random.Random(seed)

    def draw(self, evaluated: Document) -> list[int]:
        """Return the positions in the pool of the examples for the next document."""
        if self._shots == 0:
            return []
        if self._draw == "first":
            return list(range(self._shots))
        if self._draw == "any":
            return self._random.sample(range(len(self._pool)), self._shots)
        drawn = self._random.sample(range(len(self._pool)), self._shots + 1)
        drawn = [position for position in drawn if self._pool[position] != evaluated][: self._shots]
        if len(drawn) == self._shots:
            return drawn
        # The pool holds the evaluated document several times, and more than one was drawn.
        others = [position for position, document in enumerate(self._pool) if document != evaluated]
        if len(others) < self._shots:
            raise UserError(
                f"shots={self._shots} needs as many examples other than the evaluated document, and there are "
                f"{len(others)}; use {len(others)} or fewer"
            )
        return self._random.sample(others, self._shots)
