"""What the chips of a decoding mesh say to each other within a step: every collective of decoding is here.

The functions run inside `jax.shard_map` over `(data, stack, tensor)`. An axis of size 1 costs nothing: no collective is
emitted for it, so one device runs the same code.
"""

import jax
import jax.numpy as jnp

from stagjax.decoding.placement import Placement


class Slices:
    """The collectives of a placement's mesh."""

    def __init__(self, placement: Placement):
        self.slices, self.tensor = placement.slices, placement.tensor
        self.chips = self.slices * self.tensor
        self.silent = not placement.computes("collectives")
        self.hands_over = placement.computes("handoff") and not self.silent

    def sum_slice(self, x: jax.Array) -> jax.Array:
        """Add partial sums over the chips of each slice."""
        return jax.lax.psum(x, "tensor") if self.tensor > 1 and not self.silent else x

    def sum_stacks(self, x: jax.Array) -> jax.Array:
        """Add over slices; every chip gets the result."""
        return jax.lax.psum(x, "stack") if self.slices > 1 and not self.silent else x

    def sum_all(self, x: jax.Array) -> jax.Array:
        """Add over all chips that hold a part of the vocabulary."""
        return jax.lax.psum(x, self._all()) if self.chips > 1 and not self.silent else x

    def gather(self, x: jax.Array) -> jax.Array:
        """Return every chip's `x`, chips first."""
        return jax.lax.all_gather(x, self._all()) if self.chips > 1 and not self.silent else x[None]

    @jax.named_scope("handoff")
    def hand_over(self, out: jax.Array) -> jax.Array:
        """Send each slice's outputs to the next one; the first slice receives zeros."""
        if self.slices == 1:
            return jnp.zeros_like(out)
        if not self.hands_over:
            return out
        return jax.lax.ppermute(out, "stack", [(s, s + 1) for s in range(self.slices - 1)])

    def chip(self) -> jax.Array:
        """Return this chip's number among those that divide the vocabulary."""
        return jax.lax.axis_index(self._all()) if self.chips > 1 else jnp.zeros((), jnp.int32)

    def part(self, x: jax.Array, axis: int) -> jax.Array:
        """Return this chip's part of what all chips of its slice hold, the last one padded with zeros."""
        if self.tensor == 1:
            return x
        size = -(-x.shape[axis] // self.tensor)
        missing = self.tensor * size - x.shape[axis]
        if missing:
            x = jnp.pad(x, [(0, missing if d == axis else 0) for d in range(x.ndim)])
        return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index("tensor") * size, size, axis)

    def _all(self) -> tuple[str, ...]:
        """Return the axes that are larger than 1: a singleton would only lengthen the groups' description."""
        return tuple(name for name, size in (("stack", self.slices), ("tensor", self.tensor)) if size > 1)
