"""Decode steps, prefills and training steps made ready to be timed: real arrays, compiled programs, calls that wait.

The programs are those that decode and train. Their arrays are random: what a step costs does not depend on them.
"""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stagjax import memory
from stagjax.bench.programs import Traceable
from stagjax.decoding.loop import EVERYWHERE, MAX_CHUNK, ROWS, Carry, Drawing, abstract_state, decode_memory, go_on
from stagjax.decoding.placement import Placement, abstract_placed, shardings
from stagjax.decoding.sampling import Sampling


class Pool:
    """Random arrays, shared by all programs that want an equal one at the same place of their parameters.

    So a model, its variants, and the same without some part hold their common weights once.
    """

    def __init__(self) -> None:
        self._held: dict[tuple, jax.Array] = {}

    def arrays(self, abstract: Any) -> Any:
        """Return a tree of arrays with the shapes, dtypes and shardings of `abstract`."""
        leaves, tree = jax.tree_util.tree_flatten_with_path(abstract)
        keys = [(jax.tree_util.keystr(path), leaf.shape, leaf.dtype, leaf.sharding) for path, leaf in leaves]
        missing = {key: leaf for key, (_, leaf) in zip(keys, leaves, strict=True) if key not in self._held}
        if missing:
            made = random_arrays(list(missing.values()))
            self._held |= dict(zip(missing, made, strict=True))
        return jax.tree_util.tree_unflatten(tree, [self._held[key] for key in keys])


def random_arrays(abstract: Any) -> Any:
    """Return a tree of arrays like `abstract`: small floats, zeros for integers.

    Made where they will be, on several hosts too: nothing is sent.
    """
    leaves, tree = jax.tree.flatten(abstract)

    def make() -> list[jax.Array]:
        made = []
        for number, leaf in enumerate(leaves):
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                made.append(jax.random.split(jax.random.key(number), leaf.shape))
            elif jnp.issubdtype(leaf.dtype, jnp.floating):
                key = jax.random.key(number, impl="unsafe_rbg")
                made.append((0.05 * jax.random.uniform(key, leaf.shape) - 0.025).astype(leaf.dtype))
            else:
                made.append(jnp.zeros(leaf.shape, leaf.dtype))
        return made

    return jax.tree.unflatten(tree, jax.jit(make, out_shardings=[leaf.sharding for leaf in leaves])())


class DecodeRun:
    """Decoding as `stagjax.decoding.loop.Decoder` does it: calls that draw some tokens and hand them to the host.

    Args:
      placement: what is decoded, and where.
      batch: rows.
      context: slots of the caches, all of them visible.
      pool: of parameters.

    Attributes:
      compiled: the program.
      seconds: of compiling it.
    """

    def __init__(self, placement: Placement, batch: int, context: int, pool: Pool):
        drawing = Drawing(Sampling(), placement.config.vocab_size)
        state = abstract_state(placement, batch, context)
        rows, everywhere = (shardings(placement, spec) for spec in (ROWS, EVERYWHERE))
        per_row = lambda dtype: jax.ShapeDtypeStruct((batch,), dtype, sharding=rows)
        keys_B = per_row(jax.eval_shape(lambda: jax.random.key(0)).dtype)
        count = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
        carry = Carry(state, per_row(jnp.int32), per_row(jnp.bool))
        memory.check_host(memory.held_bytes((abstract_placed(placement), state)), decode_memory(batch, context))
        self.params = pool.arrays(abstract_placed(placement))
        self.keys_B, self.carry = random_arrays((keys_B, carry))
        whole = jax.jit(lambda: [jnp.int32(n) for n in (*range(MAX_CHUNK + 1), context - 1)], out_shardings=everywhere)
        *self.counts, slot = whole()
        self.carry = self.carry._replace(state=self.carry.state._replace(slot=slot))
        begun = time.perf_counter()
        self.compiled = go_on.lower(placement, drawing, self.params, carry, keys_B, count).compile()
        self.seconds = time.perf_counter() - begun

    def call(self, count: int) -> float:
        """Draw `count` tokens a row, at most 32, and read them; return the seconds that it took."""
        begun = time.perf_counter()
        self.carry, drawn_nB = self.compiled(self.params, self.carry, self.keys_B, self.counts[count])
        for leaf in drawn_nB:
            np.asarray(leaf.addressable_data(0))
        return time.perf_counter() - begun


class ProgramRun:
    """A program of `stagjax.bench.programs` whose results are thrown away, e.g. a prefill."""

    def __init__(self, traceable: Traceable, arguments: tuple):
        self.arguments = arguments
        begun = time.perf_counter()
        self.compiled = traceable.function.lower(*traceable.arguments).compile()
        self.seconds = time.perf_counter() - begun

    def call(self) -> float:
        """Run it once; return the seconds that it took."""
        begun = time.perf_counter()
        jax.block_until_ready(self.compiled(*self.arguments))
        return time.perf_counter() - begun
