"""The scoring pass: all stacks over rows of trees, and log-probabilities of the tokens that are asked for.

It is the forward pass of training with other attention and another shift of the memory, so it serves every variant.
Rows are divided over all devices of a mesh with the axes of training, and parameters as training divides them.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stagjax.config import ModelConfig
from stagjax.evaluation.trees import CONTEXT, Rows
from stagjax.model import stagformer
from stagjax.model.attention import masked_attention, own_slot
from stagjax.model.gathering import by_group, gather_embeddings
from stagjax.model.layers import Attend, Rotary
from stagjax.model.stagformer import Params
from stagjax.sharding import constrain, parameter_shardings, spec

# Queries that are taken together, as in `causal_attention`.
BLOCK = 128

# Logits that a device holds at a time: 256 MB in float32.
MAX_LOGITS = 1 << 26


class TeacherForced:
    """Scores rows of given tokens with one model.

    Args:
      config: the model's shape.
      params: as a checkpoint holds them, whatever their sharding.
      num_ids: ids of the vocabulary; probabilities are over these, as in decoding.
      mesh: with the axes of training, `stack` and `tensor` of size 1.
    """

    def __init__(self, config: ModelConfig, params: Params, num_ids: int, mesh: Mesh):
        self.mesh = mesh
        shardings = parameter_shardings(mesh, params)
        self._params = jax.device_put(params, shardings)
        self._rows = NamedSharding(mesh, spec(("rows", None), "training"))
        self._score = _program(config, num_ids, mesh)

    def __call__(self, rows: Rows) -> tuple[jax.Array, jax.Array]:
        """Return log-probabilities (natural, float32) and whether each is the highest, [B,J] on every process.

        The result is under way when this returns; only reading it waits.
        """
        put = lambda array: jax.make_array_from_callback(array.shape, self._rows, lambda index: array[index])
        return self._score(self._params, Rows(*map(put, rows)))


@functools.lru_cache(maxsize=16)
def _program(config: ModelConfig, num_ids: int, mesh: Mesh) -> Callable[[Params, Rows], tuple[jax.Array, jax.Array]]:
    """Return the compiled pass: models of one shape share it."""

    def score(params: Params, rows: Rows) -> tuple[jax.Array, jax.Array]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return score_rows(config, num_ids, params, rows)

    return jax.jit(score, out_shardings=NamedSharding(mesh, PartitionSpec()))


def score_rows(config: ModelConfig, num_ids: int, params: Params, rows: Rows) -> tuple[jax.Array, jax.Array]:
    """Return (logprobs_BJ float32, is_greedy_BJ bool) of the targets of rows."""
    params = gather_embeddings(config.compute_dtype, params)
    y_BJD = _predictions(config, params, rows)
    embedding = params["embedding"].astype(y_BJD.dtype)
    # By position, so that a chunk has rows of all devices.
    most = max(1, MAX_LOGITS // (config.vocab_size * max(1, rows.slots_BJ.shape[0] // _devices())))
    size = min(rows.slots_BJ.shape[1], 1 << (most.bit_length() - 1))

    def chunk(taken: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y_BjD, targets_Bj = taken
        found = by_group(functools.partial(_log_probabilities, num_ids), embedding, y_BjD, targets_Bj)
        return tuple(leaf.reshape(targets_Bj.shape) for leaf in found)

    if size == rows.slots_BJ.shape[1]:
        return chunk((y_BJD, rows.targets_BJ))
    split = lambda leaf: jnp.moveaxis(leaf.reshape(leaf.shape[0], -1, size, *leaf.shape[2:]), 1, 0)
    joined = lambda leaf: jnp.moveaxis(leaf, 0, 1).reshape(rows.targets_BJ.shape)
    return jax.tree.map(joined, jax.lax.map(chunk, (split(y_BJD), split(rows.targets_BJ))))


def _predictions(config: ModelConfig, params: Params, rows: Rows) -> jax.Array:
    """Return y_BJD, what the logits read at the scored places: of all else no logits are computed."""
    x_BTD = constrain(stagformer.embed(config, params, rows.tokens_BT, rows.positions_BT), "batch", None, None)
    rotary = Rotary(config, rows.positions_BT, x_BTD.dtype)
    run = functools.partial(stagformer.run_stack, config, x_BTD, rotary, *tree_attends(config, rows))
    outs, memory_BTD = [], None
    for s in range(config.num_stacks):
        if s > 0:
            memory_BTD = _memory(outs[-1], rows.sources_BT)
        outs.append(run(*stagformer.stack_params(config, params, s), memory_BTD)[0])
    scored = [jnp.take_along_axis(out_BTD, rows.slots_BJ[..., None], axis=1) for out_BTD in outs]
    return stagformer.readout(config, params, scored)


def tree_attends(config: ModelConfig, rows: Rows) -> tuple[Attend, Attend]:
    """Return how self- and cross-attention reach earlier slots of a path."""

    def attend(visible: list[jax.Array], q_BTNH, k_BTKH, v_BTKH) -> tuple[jax.Array, Any]:
        if q_BTNH is None:
            return own_slot(v_BTKH, config.num_heads), None
        heads, start = [], 0
        for visible_BTS in visible:
            T, stop = visible_BTS.shape[1:]
            heads.append(
                masked_attention(q_BTNH[:, start : start + T], k_BTKH[:, :stop], v_BTKH[:, :stop], visible_BTS)
            )
            start += T
        return jnp.concatenate(heads, axis=1), None

    own = visible_blocks(rows.positions_BT, rows.branches_BT)
    cross = own
    if config.num_stacks > 1 and config.cross_window is not None:
        cross = visible_blocks(rows.positions_BT, rows.branches_BT, config.cross_window)
    return functools.partial(attend, own), functools.partial(attend, cross)


def visible_blocks(positions_BT: jax.Array, branches_BT: jax.Array, window: int | None = None) -> list[jax.Array]:
    """Return which slots queries see, a block of queries at a time: [B, block, slots up to the block's last one].

    A path is in the order of its slots, so that none sees a later one: blocks do half of the work of the whole mask.
    """
    T = positions_BT.shape[1]
    blocks = []
    for start in range(0, T, BLOCK):
        stop = min(start + BLOCK, T)
        branch_BT1, branch_B1S = branches_BT[:, start:stop, None], branches_BT[:, None, :stop]
        behind_BTS = positions_BT[:, start:stop, None] - positions_BT[:, None, :stop]
        visible_BTS = ((branch_B1S == branch_BT1) | (branch_B1S == CONTEXT)) & (behind_BTS >= 0)
        blocks.append(visible_BTS if window is None else visible_BTS & (behind_BTS < window))
    return blocks


def _memory(out_BTD: jax.Array, sources_BT: jax.Array) -> jax.Array:
    """Return outputs shifted by the lag along each path: what a slot's cross-attention finds there."""
    shifted_BTD = jnp.take_along_axis(out_BTD, jnp.maximum(sources_BT, 0)[..., None], axis=1)
    return jnp.where(sources_BT[..., None] >= 0, shifted_BTD, 0)


def _log_probabilities(num_ids: int, embedding_VD: jax.Array, y_BJD: jax.Array, targets_BJ: jax.Array):
    logits_BJV = stagformer.logits({"embedding": embedding_VD}, y_BJD)[..., :num_ids].astype(jnp.float32)
    target_BJ = jnp.take_along_axis(logits_BJV, targets_BJ[..., None], axis=-1)[..., 0]
    is_greedy_BJ = jnp.argmax(logits_BJV, axis=-1) == targets_BJ
    return target_BJ - jax.nn.logsumexp(logits_BJV, axis=-1), is_greedy_BJ


def _devices() -> int:
    return jax.sharding.get_abstract_mesh().size or 1
