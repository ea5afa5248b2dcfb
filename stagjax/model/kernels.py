"""Which implementation computes attention over rows: splash on TPUs, cuDNN on GPUs, XLA's blocks elsewhere."""

import functools
import math
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from stagjax.errors import UserError, unknown
from stagjax.model.attention import causal_attention
from stagjax.sharding import TABLE


class Kernel(NamedTuple):
    """Where a fused kernel runs, in which dtypes, and which head dimensions it takes."""

    platform: str
    dtypes: tuple[str, ...]
    multiple: int
    largest: int


KERNELS = {
    # 256 is the largest that was compiled; jax's splash names no limit of its own.
    "splash": Kernel("tpu", ("bfloat16", "float32"), 1, 256),
    # Before Hopper, jax takes no more than 128 to cuDNN.
    "cudnn": Kernel("gpu", ("bfloat16",), 8, 128),
}

# Splash looks at scores in square blocks of which every part must fill the 128 lanes of a TPU's registers. 640 is the
# largest that was compiled (for v5e, head dimension 256, float32: it fits the vector memory).
LANES = 128
BLOCKS = range(LANES, 640 + 1, LANES)

# What visiting a block costs besides its scores, in scores. Counted in the instructions that the compiler schedules
# for v5e (head dimension 128, bfloat16, the three kernels together): b*b / 61 cycles for the scores of a block, 690 to
# start them, and 357 for the step of the grid, which is 64k scores.
VISIT = 256 * 256
SCORES_A_CYCLE = 61


def row_attention(
    q_BTNH: jax.Array,
    k_BSKH: jax.Array,
    v_BSKH: jax.Array,
    segment_ids_BS: jax.Array,
    window: int | None = None,
    kernel: str = "auto",
    interpret: bool = False,
) -> jax.Array:
    """Return softmax(q k^T / sqrt(H)) v over the slots t-window+1..t of each query's own segment.

    The T queries are those of the last T of S slots. The same as `causal_attention`, but for rounding and for what a
    padding query returns (some finite number).

    A kernel is no program that XLA could divide, so under a mesh (`jax.set_mesh`) it runs in `jax.shard_map`: rows
    over the batch axes and heads over the tensor axis of `stagjax.sharding.TABLE`, where those divide them. Inside of a
    `jax.shard_map` over all axes (decoding) it is called as it is; that one needs `check_vma=False`.

    Args:
      q_BTNH: rotated queries, in the dtype of the keys and values.
      k_BSKH: rotated keys.
      v_BSKH: values.
      segment_ids_BS: document of each slot; slots of different documents do not see each other.
      window: slots a query sees, its own included; None for all.
      kernel: "auto", or one of "xla", "splash", "cudnn" (`choose_kernel`).
      interpret: compile for TPUs, but run in Pallas's interpreter, on any platform: for tests.

    Returns:
      heads_BTNH in the dtype of v.

    Raises:
      UserError: the kernel that is asked for does not run on this platform, in this dtype or with this head dimension.
    """
    S, H = k_BSKH.shape[1], q_BTNH.shape[-1]
    platform = "tpu" if interpret else compiled_for()
    chosen = choose_kernel(kernel, platform, v_BSKH.dtype, H)
    if window is not None and window >= S:
        window = None
    if chosen == "xla":
        return causal_attention(q_BTNH, k_BSKH, v_BSKH, segment_ids_BS, window)
    if chosen == "splash":
        attend = functools.partial(_splash, window=window, interpret=interpret)
    else:
        attend = functools.partial(_cudnn, window=window)
    return _sharded(attend, q_BTNH, k_BSKH, v_BSKH, segment_ids_BS)


def choose_kernel(kernel: str, platform: str, dtype: jax.typing.DTypeLike, head_dim: int) -> str:
    """Return "xla", "splash" or "cudnn": what "auto" stands for, or the one that is forced.

    "auto" takes the platform's own kernel. Where that cannot do the job it warns, says why, and takes "xla", which
    keeps the softmax of all blocks for the backward pass. float64, in which only tests run, is always "xla".

    Args:
      kernel: "auto" or the kernel that is forced.
      platform: "tpu", "gpu" or "cpu": what is compiled for (`compiled_for`).
      dtype: of queries, keys and values.
      head_dim: H.

    Raises:
      UserError: an unknown kernel, or a forced one that cannot do the job.
    """
    if kernel not in ("auto", "xla", *KERNELS):
        raise unknown("training.attention", kernel, ("auto", "xla", *KERNELS))
    if kernel in KERNELS:
        if lack := _lack(kernel, platform, dtype, head_dim):
            raise UserError(f"training.attention={kernel!r} {lack}, or training.attention='xla'")
        return kernel
    own = next((name for name, limits in KERNELS.items() if limits.platform == platform), "xla")
    if "xla" in (kernel, own) or jnp.dtype(dtype) == jnp.float64:
        return "xla"
    if lack := _lack(own, platform, dtype, head_dim):
        warnings.warn(f"attention falls back to 'xla', which needs more memory: {own} {lack}", stacklevel=2)
        return "xla"
    return own


def compiled_for() -> str:
    """Return the platform that the program being traced is for: of the mesh in context, else JAX's default.

    They differ where a CPU host compiles for TPUs ahead of time: do that under `jax.set_mesh`, of one chip if need be.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform


def _lack(kernel: str, platform: str, dtype: jax.typing.DTypeLike, head_dim: int) -> str | None:
    """Return why a kernel cannot do the job and what would help; None where it can."""
    limits = KERNELS[kernel]
    if platform != limits.platform:
        return f"runs on {limits.platform}, but this is compiled for {platform}; use 'auto'"
    if jnp.dtype(dtype).name not in limits.dtypes:
        usable = " or ".join(map(repr, limits.dtypes))
        return f"does not compute in model.compute_dtype={jnp.dtype(dtype).name!r}; use {usable}"
    if head_dim % limits.multiple or head_dim > limits.largest:
        rule = f"a multiple of {limits.multiple}, " if limits.multiple > 1 else ""
        return f"does not take model.head_dim={head_dim}; use {rule}at most {limits.largest}"
    return None


def _sharded(attend: Callable[..., jax.Array], q_BTNH, k_BSKH, v_BSKH, segment_ids_BS) -> jax.Array:
    """Call `attend` on each device's rows and heads, by the mesh in context."""
    mesh = jax.sharding.get_abstract_mesh()
    # What an outer shard_map has divided already is no longer ours to divide.
    free = {
        name: size
        for (name, size), kind in zip(mesh.shape.items(), mesh.axis_types or (), strict=True)
        if kind != AxisType.Manual
    }
    if not free or mesh.size == 1:
        return attend(q_BTNH, k_BSKH, v_BSKH, segment_ids_BS)
    column = "training" if "fsdp" in mesh.shape else "decoding"

    def over(axis: str, size: int) -> tuple[str, ...] | None:
        names = tuple(name for name in getattr(TABLE[axis], column) if name in free)
        return names if size % math.prod(free[name] for name in names) == 0 else None

    # Key heads divide query heads, so that what divides the former keeps every query head with its key head.
    rows, heads = over("batch", q_BTNH.shape[0]), over("kv_heads", k_BSKH.shape[2])
    x_BTNH = PartitionSpec(rows, None, heads, None)
    return jax.shard_map(
        attend,
        in_specs=(x_BTNH, x_BTNH, x_BTNH, PartitionSpec(rows, None)),
        out_specs=x_BTNH,
        axis_names=set(free),
        check_vma=False,  # Pallas calls do not say over which axes their results vary
    )(q_BTNH, k_BSKH, v_BSKH, segment_ids_BS)


def _splash(q_BTNH, k_BSKH, v_BSKH, segment_ids_BS, *, window: int | None, interpret: bool) -> jax.Array:
    """Attend by Pallas's splash kernels, forward and backward: scores never leave the chip's vector memory."""
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds  # 0.1 s that only TPUs need

    T, H = q_BTNH.shape[1], q_BTNH.shape[-1]
    earlier = k_BSKH.shape[1] - T
    block = splash_block(T, window, earlier)
    # The slots that fill the last block stand behind all queries of the row, none of which sees them.
    q_BTNH, query_ids_BT = _padded(block, q_BTNH, segment_ids_BS[:, earlier:])
    k_BSKH, v_BSKH, segment_ids_BS = _padded(block, k_BSKH, v_BSKH, segment_ids_BS)
    kernel = splash_kernel(T, q_BTNH.shape[2], window, block, interpret, earlier)
    ids = SegmentIds(query_ids_BT.astype(jnp.int32), segment_ids_BS.astype(jnp.int32))
    # Splash does not scale. It groups query heads as we do, n reads n // (N/K), and reads keys once a group.
    q_BNTH, k_BKSH, v_BKSH = (jnp.swapaxes(x, 1, 2) for x in (q_BTNH * H**-0.5, k_BSKH, v_BSKH))
    heads_BNTH = jax.vmap(kernel)(q_BNTH, k_BKSH, v_BKSH, ids)
    return jnp.swapaxes(heads_BNTH, 1, 2)[:, :T].astype(v_BSKH.dtype)


def splash_block(length: int, window: int | None, earlier: int = 0) -> int:
    """Return the side of the blocks of scores with which splash is fastest, by `VISIT`.

    Small blocks waste less of what a mask cuts off, large ones are visited less often. Cycles a head that the compiler
    schedules for v5e, 1280 positions, forward and backward (384 and 512 fill up to 1536). The best are chosen:

        block        128     256     384     512     640
        no window    79,900  39,000  43,400  34,700  26,800
        window 512   52,300  30,400  39,500  29,700  27,200
        window 128   25,900  23,300  31,200  29,700  27,200

    So a window of 512 saves nothing in rows of 1280; in longer ones it does. They are not measured on a chip, and know
    nothing of waiting for memory, but are the instructions that it runs: LIBTPU_INIT_ARGS="--xla_jf_dump_to=DIR
    --xla_jf_dump_llo_text=true" writes them (final_bundles.txt); each of the kernel's regions is weighed with how
    often the grid enters it.
    """

    def cost(block: int) -> int:
        return visited_blocks(length, window, block, earlier) * (block * block + VISIT)

    return min(BLOCKS, key=cost)


def splash_cycles(length: int, window: int | None) -> float:
    """Estimate the cycles of one head over a row, forward and backward, by `VISIT`: 6 to 15% under the table above."""
    block = splash_block(length, window)
    return visited_blocks(length, window, block) * (block * block + VISIT) / SCORES_A_CYCLE


def visited_blocks(length: int, window: int | None, block: int, earlier: int = 0) -> int:
    """Return how many blocks of scores hold one that the mask leaves visible; splash skips all others.

    Of `length` queries behind `earlier` slots; slots that only fill the last block of queries count as queries.
    """
    keys = -(-(earlier + length) // block)
    starts = (earlier + row * block for row in range(-(-length // block)))
    firsts_and_ends = (
        (0 if window is None else max(0, start - window + 1) // block, min(keys, (start + block - 1) // block + 1))
        for start in starts
    )
    return sum(end - first for first, end in firsts_and_ends)


def splash_kernel(
    length: int, num_heads: int, window: int | None, block: int, interpret: bool = False, earlier: int = 0
) -> Callable:
    """Return splash for q_NTH, k_KSH, v_KSH and `SegmentIds` of one row: `length` queries behind `earlier` slots.

    T and S are both filled up to a multiple of `block`.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        # One kernel for the gradients of q, k and v would write those of q once per block of keys, in bfloat16.
        block_q_dq=block,
        block_kv_dq=block,
    )
    filled = lambda size: -(-size // block) * block
    mask = _mask((filled(length), filled(earlier + length)), num_heads, window, earlier)
    return splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)


@functools.lru_cache(maxsize=64)
def _mask(shape: tuple[int, int], num_heads: int, window: int | None, earlier: int):
    """Return splash's mask: one object for all layers, since its function is a key of the kernels' `jax.jit`."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    causal = window is None
    mask = splash.CausalMask(shape, earlier) if causal else splash.LocalMask(shape, (window - 1, 0), earlier)
    return splash.MultiHeadMask([mask] * num_heads)


def _cudnn(q_BTNH, k_BSKH, v_BSKH, segment_ids_BS, *, window: int | None) -> jax.Array:
    """Attend by cuDNN's fused kernels. Lowered and inspected, but never run: no GPU was at hand.

    cuDNN knows documents only as the packed layout: Hopper or later, a fixed number of documents a row, and statistics
    of that many times the size. So documents and window are a mask [B,1,T,S], which jax hands on as a bias in the
    dtype of q: scores still never reach memory, the mask does, once for all heads, and in jax 0.10 its gradient too.
    Causality is cuDNN's own and saves half of the work; a window saves none (jax tests cuDNN's only without a bias).
    Behind earlier slots causality is in the mask: cuDNN's own lets the first query see the first slot only.
    """
    T = q_BTNH.shape[1]
    earlier = k_BSKH.shape[1] - T
    # Training with a bias needs an even length; a multiple of 128 is what jax's own tests use.
    q_BTNH, query_ids_BT = _padded(LANES, q_BTNH, segment_ids_BS[:, earlier:])
    k_BSKH, v_BSKH, segment_ids_BS = _padded(LANES, k_BSKH, v_BSKH, segment_ids_BS)
    visible_BTS = query_ids_BT[:, :, None] == segment_ids_BS[:, None, :]
    behind_TS = earlier + jnp.arange(q_BTNH.shape[1])[:, None] - jnp.arange(k_BSKH.shape[1])[None, :]
    if window is not None:
        visible_BTS &= behind_TS < window
    if earlier:
        visible_BTS &= behind_TS >= 0
    heads_BTNH = jax.nn.dot_product_attention(
        q_BTNH, k_BSKH, v_BSKH, mask=visible_BTS[:, None], is_causal=not earlier, implementation="cudnn"
    )
    return heads_BTNH[:, :T]


def _padded(multiple: int, *arrays: jax.Array) -> list[jax.Array]:
    """Fill up the second dimension with zeros."""
    return [jnp.pad(x, ((0, 0), (0, -x.shape[1] % multiple), *((0, 0),) * (x.ndim - 2))) for x in arrays]
