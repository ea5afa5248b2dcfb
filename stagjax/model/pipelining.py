"""Training with the stacks on slices of the mesh: microbatches follow each other through the stacks (GPipe's schedule).

In round r slice s runs its stack over microbatch r - s, so that all slices work at the same time but for the p-1 rounds
in which the pipeline fills and drains. A slice holds its own stack's layers only, and all that slices tell each other
in a round is a microbatch's outputs, [B,T,D].

Differentiating, JAX takes what no round changes out of the loop over rounds: a slice gathers the weights of its layers
over `fsdp` once for all rounds and holds them whole. On the way back too, unless `remat` is "layer": then it gathers
each anew in each round.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from stagjax.config import Config, ModelConfig
from stagjax.config_rules import divisors
from stagjax.model.attention import shift_memory
from stagjax.model.layers import Rotary
from stagjax.model.stagformer import Params, embed, row_attends, run_stack, weight_sets
from stagjax.sharding import TABLE, constrain, logical_axes, parameter_path


def num_microbatches(config: Config, mesh: Mesh | AbstractMesh) -> int:
    """Return M: `training.microbatches`, or the most that divide the rows of a device, up to 4 for each stack.

    With 4 for each stack a slice idles for less than a fifth of a step; with more, products become small.
    """
    if config.training.microbatches is not None:
        return config.training.microbatches
    groups = math.prod(mesh.shape[name] for name in TABLE["batch"].training)
    rows = config.training.global_batch // config.training.accumulation // groups
    return max(number for number in divisors(rows) if number <= 4 * config.model.num_stacks)


def bubble(num_stacks: int, microbatches: int) -> float:
    """Return the share of a pipelined pass in which a slice is idle: it works in M of M+p-1 rounds."""
    return (num_stacks - 1) / (microbatches + num_stacks - 1)


def pipeline_report(config: Config, mesh: Mesh | AbstractMesh) -> str:
    """Return a line for the log: slices, microbatches, and how long a slice is idle."""
    P, M = config.model.num_stacks, num_microbatches(config, mesh)
    return f"pipelined over {P} slices in {M} microbatches: each slice is idle for {bubble(P, M):.0%} of a step"


def forward(
    config: ModelConfig,
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array,
    segment_ids_BT: jax.Array,
    microbatches: int,
    *,
    remat: str = "none",
    scan_layers: bool = True,
    attention: str = "auto",
) -> jax.Array:
    """Return y_BTD, what `stagformer.readout` makes of `stagformer.forward`, of all stacks running at the same time.

    Args:
      config: the model's shape.
      params: as `init_params` returns them, the embeddings gathered (`gathering.gather_embeddings`).
      tokens_BT: model inputs; rows divided as logical axis "rows" of `stagjax.sharding`, and so is y.
      positions_BT: of each token within its document.
      segment_ids_BT: document of each token within its row.
      microbatches: M, into which the rows are cut.
      remat: as `stagformer.forward` takes it.
      scan_layers: the same.
      attention: the same.
    """
    P = config.num_stacks
    weights = _weights(config, params)

    def run(x_BTD, positions_BT, segment_ids_BT, received_BTD, blocks_L, cross_L, out_norm):
        memory_BTD = shift_memory(received_BTD, config.lag, segment_ids_BT)
        rotary = Rotary(config, positions_BT, x_BTD.dtype)
        attends = row_attends(config, segment_ids_BT, attention=attention)
        layers = rotary, *attends, blocks_L, cross_L, out_norm
        return run_stack(config, x_BTD, *layers, memory_BTD, remat=remat, scan_layers=scan_layers)[0]

    def round_(out_PBTD: jax.Array, rows: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        # Each slice receives what the one before made of the same microbatch, the first zeros. Not `jnp.roll`, which
        # sends the last one's outputs round to the first, and whose derivative takes two permutes.
        received_PBTD = jnp.pad(out_PBTD[:-1], ((1, 0), (0, 0), (0, 0), (0, 0)))
        out_PBTD = jax.vmap(run, spmd_axis_name="stack")(*rows, received_PBTD, *weights)
        out_PBTD = constrain(out_PBTD, "stack", "batch", None, None)
        return out_PBTD, out_PBTD

    x_BTD = constrain(embed(config, params, tokens_BT, positions_BT), "rows", None, None)
    rows = tuple(_staggered(leaf, P, microbatches) for leaf in (x_BTD, positions_BT, segment_ids_BT))
    _, outs_RPBTD = jax.lax.scan(round_, jnp.zeros_like(rows[0][0]), rows)
    return _collected(config, params, outs_RPBTD, microbatches)


def _weights(config: ModelConfig, params: Params) -> tuple[Params, Params, Params]:
    """Return each slice's (blocks, cross, out_norm) along a leading axis P, divided over the slices.

    Cross-attention of stack 0 is one of zeros: it adds exactly nothing, and what would be its gradient is dropped.
    Sets that more than one slice reads, and those of cross-attention, are copied; their gradients are summed.
    """
    P = config.num_stacks

    def own(part: str) -> Params:
        def of_slices(path: tuple, leaf: jax.Array) -> jax.Array:
            if part == "cross":
                sets = jnp.array([-1 if x is None else x for _, x in (weight_sets(config, s) for s in range(P))])
                sets = sets.reshape(P, *(1,) * (leaf.ndim - 1))
                # Selected, not looked up: XLA would gather all slices' sets for a lookup.
                leaf = sum(jnp.where(sets == x, leaf[x], 0) for x in range(leaf.shape[0]))
            axes = logical_axes(f"{part}/{parameter_path(path)}")
            return constrain(jnp.broadcast_to(leaf, (P, *leaf.shape[1:])), "stack", *axes[1:])

        return jax.tree_util.tree_map_with_path(of_slices, params[part])

    return own("blocks"), own("cross"), own("out_norm")


def _staggered(leaf: jax.Array, num_stacks: int, microbatches: int) -> jax.Array:
    """Return rows [B,...] as [R,P,B,...]: in round r slice s has microbatch r - s, or while it idles some other."""
    P, M = num_stacks, microbatches
    whole = (None,) * (leaf.ndim - 1)
    copies_PB = constrain(
        jnp.broadcast_to(constrain(leaf, "batch", *whole), (P, *leaf.shape)), "stack", "batch", *whole
    )
    # Part m is every M-th row from row m on: of neighbouring rows, which a device has, an equal share.
    parts_PMB = jnp.moveaxis(copies_PB.reshape(P, -1, M, *leaf.shape[1:]), 2, 1)

    def delayed(parts_MB: jax.Array, s: jax.Array) -> jax.Array:
        # Real rows, not zeros, while a slice idles: of what they yield nothing is used, and nothing is infinite.
        return parts_MB[jnp.clip(jnp.arange(M + P - 1) - s, 0, M - 1)]

    rounds_RPB = jax.vmap(delayed, out_axes=1, spmd_axis_name="stack")(parts_PMB, jnp.arange(P))
    return constrain(rounds_RPB, None, "stack", "batch", *whole)


def _collected(config: ModelConfig, params: Params, outs_RPBTD: jax.Array, microbatches: int) -> jax.Array:
    """Return y_BTD in the order of rows: of each slice its share, summed over the slices.

    With one sum every device has its part of the rows, from the last slice ("last") or from all ("linear"). Handing
    the linear combination on from slice to slice would double what a round sends.
    """
    P, M = config.num_stacks, microbatches
    last_P = jnp.arange(P) == P - 1
    alpha_P = (params["combine"] if config.combine == "linear" else last_P).astype(outs_RPBTD.dtype)

    def share(out_RBTD: jax.Array, s: jax.Array, alpha: jax.Array) -> jax.Array:
        out_MBTD = jax.lax.dynamic_slice_in_dim(out_RBTD, s, M)
        return alpha * jnp.moveaxis(out_MBTD, 0, 1).reshape(-1, *out_RBTD.shape[2:])

    shares_PBTD = jax.vmap(share, in_axes=(1, 0, 0), spmd_axis_name="stack")(outs_RPBTD, jnp.arange(P), alpha_P)
    shares_PBTD = constrain(shares_PBTD, "stack", "batch", None, None)
    return constrain(jnp.sum(shares_PBTD, axis=0), "rows", None, None)
