"""Prefill: the stacks over whole prompts, one after the other, kept as the state that decode steps go on from."""

import jax
import jax.numpy as jnp

from stagjax.decoding.cache import DecodeState, LayerCache, from_prefill
from stagjax.decoding.placement import RECURRENT, DecodeParams, Placement
from stagjax.decoding.slices import Slices
from stagjax.decoding.stack import Rows, run_stack
from stagjax.decoding.step import combine, embed
from stagjax.model.attention import shift_memory
from stagjax.model.kernels import row_attention
from stagjax.model.layers import Rotary


def prefill(
    placement: Placement, params: DecodeParams, tokens_BT: jax.Array, starts_B: jax.Array, capacity: int
) -> tuple[list[jax.Array], DecodeState]:
    """Run all stacks over left-padded prompts; one chip's part of an SPMD program, as `decode_step` is.

    Args:
      placement: what runs where.
      params: in decoding form, this chip's part.
      tokens_BT: BOS and pieces of each prompt, aligned at the right; what stands before `starts_B` is ignored.
      starts_B: slot of each row's BOS.
      capacity: slots of the caches: at least T and the steps to come.

    Returns:
      The outputs [B,T,D] of this chip's stacks (`last_y` and `all_y` make what the logits read of them), and the
      state whose next slot is T.
    """
    run = _Rows(placement, params, tokens_BT, starts_B, capacity)
    if placement.slices > 1:
        outs, caches, memory, outbox = run.over_slices()
    else:
        outs, caches, memory = run.in_turn()
        outbox = None
    state = DecodeState(caches, memory, outbox, jnp.asarray(tokens_BT.shape[1], jnp.int32), starts_B)
    return outs, state


def all_y(placement: Placement, params: DecodeParams, outs: list[jax.Array]) -> jax.Array:
    """Return y of every position, [B,T,D]."""
    return combine(placement, params, outs)


def last_y(placement: Placement, params: DecodeParams, outs: list[jax.Array]) -> jax.Array:
    """Return y of the last position, [B,D]: nothing else of the prompt leaves its slice."""
    return combine(placement, params, [out_BTD[:, -1] for out_BTD in outs])


class _Rows:
    """The prompts, and how a stack runs over them."""

    def __init__(self, placement: Placement, params: DecodeParams, tokens_BT, starts_B, capacity: int):
        self.placement, self.params, self.config = placement, params, placement.config
        self.capacity = capacity
        self.B, self.T = tokens_BT.shape
        slots_1T = jnp.arange(self.T)[None]
        self.inside_BT = slots_1T >= starts_B[:, None]
        self.segment_ids_BT = self.inside_BT.astype(jnp.int32)
        positions_BT = jnp.clip(slots_1T - starts_B[:, None], 0, self.config.max_length - 1)
        self.x_BTD = embed(placement, params, tokens_BT, positions_BT)
        self.rotary = Rotary(self.config, positions_BT.reshape(-1), self.x_BTD.dtype)

    def run(self, stack: dict, out_BTD: jax.Array | None) -> tuple[jax.Array, tuple]:
        """Run a stack behind the one whose outputs are `out_BTD` (zeros for none); return its outputs and caches."""
        shape = (self.B, self.T, self.config.model_dim)
        memory_RD = None
        if "memory_in" in stack or "memory_out" in stack:
            out_BTD = jnp.zeros_like(self.x_BTD) if out_BTD is None else out_BTD
            memory_RD = shift_memory(out_BTD, self.config.lag, self.segment_ids_BT).reshape(-1, shape[-1])
        R = self.B * self.T
        out_RD, caches = run_stack(
            self.placement,
            stack,
            self.x_BTD.reshape(R, -1),
            memory_RD,
            self.rotary,
            self._attend,
            Rows(R, R),
            memory_at_once=False,
        )
        return out_RD.reshape(shape), caches

    def in_turn(self) -> tuple[list, tuple, tuple]:
        """Run all stacks on the same chips."""
        P, passes, stacks = self.config.num_stacks, self.placement.passes, self.params.stacks
        outs, kept = [], []
        for s in range(P):
            stack = stacks[s] if len(stacks) == P else stacks[0]
            out_BTD, caches = self.run(stack, outs[-1] if outs else None)
            outs.append(out_BTD)
            kept.append(caches)
        if self.placement.mode == RECURRENT:
            # The last pass goes on, from the outputs that it has read so far.
            return outs, (kept[-1],), (self._tail(outs[-2]),)
        if passes > 1:
            kept = [jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *kept)]
        if not self.placement.reads_memory:
            return outs, tuple(kept), (None,) * len(kept)
        read = [None if s == 0 else self._tail(outs[s - 1]) for s in range(P)]
        if passes > 1:
            read = [jnp.concatenate([jnp.zeros_like(read[1]), *read[1:]], axis=1)]
        return outs, tuple(kept), tuple(read)

    def over_slices(self) -> tuple[list, tuple, tuple, jax.Array | None]:
        """Run every slice's stack once a round: what slice s holds is right from round s on."""
        slices, stack = Slices(self.placement), self.params.stacks[0]

        def round_(_: int, received_BTD: jax.Array) -> jax.Array:
            return slices.hand_over(self.run(stack, received_BTD)[0])

        received_BTD = jax.lax.fori_loop(0, self.placement.slices - 1, round_, jnp.zeros_like(self.x_BTD))
        out_BTD, caches = self.run(stack, received_BTD)
        memory, outbox = self._tail(received_BTD), None
        if self.config.lag > 1:
            memory, outbox = memory[:-1], self._tail(out_BTD)[-1]
        return [out_BTD], (caches,), (memory,), outbox

    def _attend(self, l: int, kind: str, q_RNH, k_RKH, v_RKH) -> tuple[jax.Array, LayerCache]:
        q_BTNH, k_BTKH, v_BTKH = (x.reshape(self.B, self.T, *x.shape[1:]) for x in (q_RNH, k_RKH, v_RKH))
        window = self.config.cross_window if kind == "cross" else None
        heads_BTNH = row_attention(q_BTNH, k_BTKH, v_BTKH, self.segment_ids_BT, window)
        return heads_BTNH.reshape(q_RNH.shape), from_prefill(k_BTKH, v_BTKH, self.capacity, window)

    def _tail(self, out_BTD: jax.Array) -> jax.Array | None:
        """Return the last `lag` outputs, zeros where the document has none yet: [lag,B,D]."""
        lag = self.config.lag
        if lag == 0:
            return None
        out_BTD = jnp.where(self.inside_BT[..., None], out_BTD, 0)
        return jnp.swapaxes(jnp.pad(out_BTD, ((0, 0), (lag, 0), (0, 0)))[:, -lag:], 0, 1)
