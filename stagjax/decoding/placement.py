"""From a checkpoint's parameters to the form in which a decode step reads them, on one device or on slices of a mesh.

What runs on a mesh is one SPMD program (`jax.shard_map` over `(data, stack, tensor)`), and this module says which part
of every array a chip holds. Arrays of the decoding form are containers of such parts: their first dimension is the
slices' parts one after the other, so that a part needs no reshaping where it is read.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from stagjax.config import ModelConfig
from stagjax.config_rules import divisors
from stagjax.errors import UserError
from stagjax.mesh import DecodeMesh, decoding_mesh
from stagjax.model.stagformer import Params, abstract_params
from stagjax.sharding import placed_spec

PARALLEL, RECURRENT = "parallel", "recurrent"
PADDED, REPEATED = "padded", "repeated"

# What a benchmark may leave out of a step, to tell what it costs (`Placement.without`).
LEFT_OUT = ("self_attention", "cross_attention", "mlp", "handoff", "logits", "sampling", "collectives")

# A TPU's matrix unit takes 8 rows at once; fewer are computed on the vector unit, some 20 times slower (docs/plan.md).
TPU_ROWS = 8


@dataclasses.dataclass(frozen=True)
class Placement:
    """All that a decode program is compiled for: which model, in which mode, on which mesh, in which form.

    Attributes:
      config: the model's shape.
      mesh: of axes `(data, stack, tensor)`; `stack` is 1 or the number of stacks that run in a step.
      mode: "parallel" (all stacks at once) or "recurrent" (shared weights, one pass a token).
      heads: "padded" (equal numbers of heads on all chips, the last ones zero) or "repeated" (chips that are too many
        for the heads hold the same ones).
      rows: rows of a matrix product are padded to a multiple of this.
      without: parts of a step (of `LEFT_OUT`) that are not computed: its tokens mean nothing, its time does.
    """

    config: ModelConfig
    mesh: Mesh
    mode: str = PARALLEL
    heads: str = PADDED
    rows: int = 1
    without: frozenset[str] = frozenset()

    def computes(self, part: str) -> bool:
        """Return whether a part of `LEFT_OUT` is computed."""
        return part not in self.without

    @property
    def running(self) -> int:
        """Stacks (passes) that run in a step."""
        return 1 if self.mode == RECURRENT else self.config.num_stacks

    @property
    def slices(self) -> int:
        """Slices of the mesh, each with its own stack; 1 if all stacks run on the same chips."""
        return self.mesh.shape["stack"]

    @property
    def tensor(self) -> int:
        """Chips of a slice."""
        return self.mesh.shape["tensor"]

    @property
    def passes(self) -> int:
        """Stacks that run as one, as rows of the same matrix products: they share weights and chips."""
        together = self.config.shared_weights and self.slices == 1 and self.config.lag > 0
        return self.running if together else 1

    @property
    def reads_memory(self) -> bool:
        """Whether stacks have cross-attention at all."""
        return self.config.num_stacks > 1 and self.computes("cross_attention")

    @functools.cached_property
    def layout(self) -> "HeadLayout":
        """Which heads each chip of a slice holds."""
        return head_layout(self.config, self.tensor, self.heads)


def make_placement(
    config: ModelConfig,
    sizes: DecodeMesh | None = None,
    *,
    mode: str = PARALLEL,
    heads: str = PADDED,
    rows: int | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Placement:
    """Return a checked placement.

    Args:
      config: the model's shape.
      sizes: of the mesh; None for one device.
      mode: "parallel" or "recurrent".
      heads: how heads are laid out over chips.
      rows: see `Placement`; None for what the platform wants (8 on a TPU).
      devices: to choose from; None for all.

    Raises:
      UserError: a mode that the model cannot be decoded in, or a mesh that does not fit it or the devices.
    """
    check_mode(config, mode)
    sizes = sizes or DecodeMesh()
    running = 1 if mode == RECURRENT else config.num_stacks
    if sizes.stack not in (1, running):
        what = "recurrent decoding runs one pass" if mode == RECURRENT else f"model.num_stacks={running}"
        use = "1" if running == 1 else f"{running} for a slice a stack, or 1 for all on the same chips"
        raise UserError(f"mesh.stack={sizes.stack} does not fit: {what}; use {use}")
    mesh = decoding_mesh(sizes, devices)
    if rows is None:
        rows = TPU_ROWS if mesh.devices.flat[0].platform == "tpu" else 1
    return Placement(config, mesh, mode, heads, rows)


def can_recur(config: ModelConfig) -> bool:
    """Return whether recurrent decoding means anything for a model: shared weights, two or more passes, lag >= 1."""
    return config.shared_weights and config.num_stacks > 1 and config.lag > 0


def check_mode(config: ModelConfig, mode: str) -> None:
    """Raise `UserError` where a model cannot be decoded in `mode`."""
    if mode == RECURRENT and not can_recur(config):
        raise UserError(
            "recurrent decoding needs a shared-weights model of two or more passes and lag >= 1, but this one has "
            f"model.shared_weights={config.shared_weights}, model.num_stacks={config.num_stacks}, "
            f"model.lag={config.lag}; use parallel decoding"
        )


class HeadLayout(NamedTuple):
    """Heads of each chip of a slice, [tensor, heads on a chip]; -1 is a head of zeros.

    Attributes:
      kv: index of the kv head.
      query: index of the query head; those of one kv head follow each other.
      out: the same, but -1 also where another chip adds this head's output.
    """

    kv: np.ndarray
    query: np.ndarray
    out: np.ndarray


def head_layout(config: ModelConfig, tensor: int, how: str = PADDED) -> HeadLayout:
    """Lay the heads of an attention out over the chips of a slice.

    Padded: each chip gets the same number of kv heads; the query heads of a kv head may be divided over several chips,
    which then hold that kv head each (grouped-query attention with fewer kv heads than chips). Of all ways to divide
    them the one with the fewest query heads, then the fewest kv heads a chip.
    """
    K, G = config.num_kv_heads, config.num_heads // config.num_kv_heads
    if how == REPEATED:
        ways = max(divisor for divisor in divisors(tensor) if K % divisor == 0)
        kv = np.repeat(np.arange(K).reshape(ways, -1), tensor // ways, axis=0)
        query = (kv[:, :, None] * G + np.arange(G)).reshape(tensor, -1)
        first = np.arange(tensor) % (tensor // ways) == 0
        return HeadLayout(kv, query, np.where(first[:, None], query, -1))
    local = lambda copies: -(-K * copies // tensor)
    copies = min(divisors(G), key=lambda copies: (local(copies) * (G // copies), local(copies)))
    split = np.arange(tensor * local(copies))
    kv = np.where(split < K * copies, split // copies, -1)
    query = np.where(
        kv[:, None] < 0, -1, kv[:, None] * G + (split % copies)[:, None] * (G // copies) + np.arange(G // copies)
    ).reshape(tensor, -1)
    return HeadLayout(kv.reshape(tensor, -1), query, query)


class DecodeParams(NamedTuple):
    """Parameters in decoding form: matrices in the compute dtype, layers apart, projections of one input joined.

    Norm scales are multiplied into the matrices that read the normed stream. Position embedding, output norm and
    combination stay float32 (or wider): they are small, and sums with them are taken in float32.

    Attributes:
      embedding: [V,D], vocabulary padded and divided over all chips.
      position_embedding: [max_length,D].
      alpha: [P], weight of each stack's output in what the logits read.
      stacks: those that a chip runs one after the other, see `_place_stack`.
    """

    embedding: jax.Array
    position_embedding: jax.Array
    alpha: jax.Array
    stacks: tuple[dict[str, Any], ...]


def place(placement: Placement, params: Params) -> DecodeParams:
    """Return the decoding form of a checkpoint's parameters; trace it, or call `load`."""
    config, slices = placement.config, placement.slices
    chips = slices * placement.tensor
    dtype = jnp.dtype(config.compute_dtype)
    if config.shared_weights:
        held = [[(0, 0)] * slices]  # (weight set, cross-attention's set) of each slice's stack
        if not placement.passes > 1 and slices == 1:
            held *= placement.running
    elif slices > 1:
        held = [[(s, s - 1) for s in range(slices)]]
    else:
        held = [[(s, s - 1 if s > 0 else None)] for s in range(placement.running)]
    placed: dict[tuple, dict[str, Any]] = {}
    for sets in held:
        if tuple(sets) not in placed:  # stacks that share weights hold the same arrays
            placed[tuple(sets)] = _place_stack(placement, params, sets)
    last_P = jnp.zeros(config.num_stacks).at[-1].set(1.0)
    embedding_VD = params["embedding"].astype(dtype)
    return DecodeParams(
        embedding=_pad(embedding_VD, 0, chips),
        position_embedding=params["position_embedding"],
        alpha=params["combine"] if config.combine == "linear" else last_P,
        stacks=tuple(placed[tuple(sets)] for sets in held),
    )


def load(placement: Placement, params: Params) -> DecodeParams:
    """Place parameters, whatever their sharding (numpy arrays too), onto the placement's mesh."""
    return _loader(placement)(params)


@functools.lru_cache(maxsize=8)
def _loader(placement: Placement) -> Any:
    wanted = shardings(placement, specs(_abstract_placed(placement)))
    return jax.jit(functools.partial(place, placement), out_shardings=wanted)


def specs(placed: DecodeParams) -> DecodeParams:
    """Return the `PartitionSpec` of every array of the decoding form."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: placed_spec(getattr(path[-1], "key", None) or path[-1].name), placed
    )


def shardings(placement: Placement, tree: Any) -> Any:
    """Return a tree of `PartitionSpec`s as shardings on the placement's mesh."""
    return jax.tree.map(
        lambda spec: NamedSharding(placement.mesh, spec), tree, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec)
    )


def abstract_placed(placement: Placement) -> DecodeParams:
    """Return the decoding form's shapes, dtypes and shardings; nothing is allocated."""
    return jax.tree.map(lambda leaf: leaf, _abstract_placed(placement))


@functools.lru_cache
def _abstract_placed(placement: Placement) -> DecodeParams:
    abstract = jax.eval_shape(functools.partial(place, placement), abstract_params(placement.config))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings(placement, specs(abstract)),
    )


def _place_stack(placement: Placement, params: Params, sets: list[tuple[int, int | None]]) -> dict[str, Any]:
    """Return the arrays of the stacks at one place of all slices.

    Per layer `attention_in` [D,(N+2K)H], `attention_out` [NH,D], `gate_up` [D,2F], `down` [F,D]. With cross-attention
    whose window is over 1 `memory_in` [D,L2KH], the keys and values of all layers, and `cross_query` and `cross_out`
    a layer; parallel cross-attention has these joined to `attention_in` and `attention_out`. With window 1
    `memory_out` [D,LD]: no softmax is left, so value and output projection of a layer are one matrix.
    """
    config, dtype = placement.config, jnp.dtype(placement.config.compute_dtype)
    at = lambda tree, *index: jax.tree.map(lambda leaf: leaf[index], tree)

    def cross_of(x: int) -> Params:
        """Return a set of cross-attention; zeros for stack 0, which runs the code of its neighbours."""
        if x < 0:
            return jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), params["cross"])
        return at(params["cross"], x)

    per_slice = []
    for w, x in sets:
        blocks = at(params["blocks"], w)
        cross = cross_of(x) if placement.reads_memory and x is not None else None
        stack = {"layers": [], "out_norm": params["out_norm"]["scale"][w]}
        for l in range(config.layers_per_stack):
            stack["layers"].append(_place_layer(placement, at(blocks, l), None if cross is None else at(cross, l)))
        if cross is not None:
            name, matrix = _place_memory(placement, cross["attention"])
            stack[name] = matrix
        stack["layers"] = tuple(stack["layers"])
        per_slice.append(stack)
    joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves) if len(leaves) > 1 else leaves[0], *per_slice)
    norm = joined.pop("out_norm")
    return jax.tree.map(lambda leaf: leaf.astype(dtype), joined) | {"out_norm": norm}


def _place_layer(placement: Placement, block: Params, cross: Params | None) -> dict[str, jax.Array]:
    layout, attention = placement.layout, block["self_attention"]
    own_query = cross is not None and "query" in cross["attention"]
    parallel = own_query and "norm" not in cross
    inward, outward, placed = [], [], {}
    if placement.computes("self_attention"):
        inward += [(attention["query"], layout.query), (attention["key"], layout.kv), (attention["value"], layout.kv)]
        outward.append((attention["out"], layout.out))
    if parallel:
        inward.append((cross["attention"]["query"], layout.query))
        outward.append((cross["attention"]["out"], layout.out))
    if inward:
        placed |= {"attention_in": _inward(inward, block["self_norm"]["scale"]), "attention_out": _outward(outward)}
    if placement.computes("mlp"):
        mlp, scale_D1 = block["mlp"], block["mlp_norm"]["scale"][:, None]
        padded = [_pad(mlp[name] * scale_D1, 1, placement.tensor) for name in ("gate", "up")]
        placed["gate_up"] = _join([_divide(weight_DF, placement.tensor) for weight_DF in padded])
        placed["down"] = _pad(mlp["down"], 0, placement.tensor)
    if own_query and not parallel:
        placed["cross_query"] = _inward([(cross["attention"]["query"], layout.query)], cross["norm"]["scale"])
        placed["cross_out"] = _outward([(cross["attention"]["out"], layout.out)])
    return placed


def _place_memory(placement: Placement, attention_L: Params) -> tuple[str, jax.Array]:
    """Return what the memory is multiplied by, for all layers at once: it is there before the step begins."""
    config, layout = placement.config, placement.layout
    L, D = config.layers_per_stack, config.model_dim
    if "key" not in attention_L:
        G = config.num_heads // config.num_kv_heads
        value_LDNH = jnp.repeat(attention_L["value"], G, axis=2)
        merged_LDE = jnp.einsum("LDNH,LNHE->LDE", value_LDNH, attention_L["out"], precision="highest")
        return "memory_out", _pad(merged_LDE.transpose(1, 0, 2).reshape(D, L * D), 0, placement.tensor)
    parts = [_divide_heads(attention_L[name][l], layout.kv) for name in ("key", "value") for l in range(L)]
    return "memory_in", _join(parts)


def _inward(parts: list[tuple[jax.Array, np.ndarray]], scale_D: jax.Array) -> jax.Array:
    """Join projections [D,N,H] of one normed stream, chip by chip; the norm's scale goes into the matrix."""
    return _join([_divide_heads(weight_DNH, slots) * scale_D[:, None, None] for weight_DNH, slots in parts])


def _outward(parts: list[tuple[jax.Array, np.ndarray]]) -> jax.Array:
    """Join projections [N,H,D] that are added, chip by chip: [chips heads H, D]."""
    D = parts[0][0].shape[-1]
    divided = []
    for weight_NHD, slots in parts:
        picked = _pick(weight_NHD, slots.reshape(-1), axis=0)
        divided.append(picked.reshape(slots.shape[0], -1, D))
    return jnp.concatenate(divided, axis=1).reshape(-1, D)


def _divide_heads(weight_DNH: jax.Array, slots: np.ndarray) -> jax.Array:
    """Return [D, chips, columns of a chip]."""
    picked = _pick(weight_DNH, slots.reshape(-1), axis=1)
    return picked.reshape(weight_DNH.shape[0], slots.shape[0], -1)


def _divide(weight_DF: jax.Array, chips: int) -> jax.Array:
    return weight_DF.reshape(weight_DF.shape[0], chips, -1)


def _join(divided: list[jax.Array]) -> jax.Array:
    """Join [D, chips, columns] so that a chip's columns of all of them follow each other."""
    return jnp.concatenate(divided, axis=2).reshape(divided[0].shape[0], -1)


def _pick(weight: jax.Array, slots: np.ndarray, axis: int) -> jax.Array:
    """Return the heads at `slots`, zeros for -1."""
    if np.array_equal(slots, np.arange(weight.shape[axis])):
        return weight
    held = jnp.asarray(slots >= 0).reshape([-1 if d == axis else 1 for d in range(weight.ndim)])
    return jnp.where(held, jnp.take(weight, np.maximum(slots, 0), axis=axis), 0)


def _pad(weight: jax.Array, axis: int, multiple: int) -> jax.Array:
    missing = -weight.shape[axis] % multiple
    return jnp.pad(weight, [(0, missing if d == axis else 0) for d in range(weight.ndim)]) if missing else weight
