"""The kernels of attention against `causal_attention`: values, gradients, meshes, selection, and what they compile to.

Splash runs in Pallas's interpreter here; what a TPU would run is compiled ahead of time where libtpu is installed.
"""

import functools
import os
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from stagjax.config import Config, DataConfig, ModelConfig, TrainingConfig
from stagjax.errors import UserError
from stagjax.mesh import DECODING_AXES, TRAINING_AXES
from stagjax.model import kernels, stagformer
from stagjax.model.attention import causal_attention, shift_memory
from stagjax.model.kernels import choose_kernel, row_attention, splash_block, splash_kernel, visited_blocks

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 32

# Documents of 1, 129, 90 and 2 positions and a padding tail; one document that fills the row; documents of 7.
SEGMENTS = {
    "packed": lambda T: np.array([1] + [2] * 129 + [3] * 90 + [4] * 2 + [0] * T)[:T],
    "one": lambda T: np.ones(T, int),
    "short": lambda T: 1 + np.arange(T) // 7,
}


def draws(T, kv_heads=KV_HEADS, dtype=jnp.float32, rows=("packed", "short")):
    """Return random (q, k, v, weight of each output) and the segments; padding weighs nothing."""
    draw = np.random.default_rng(T)
    segments_BT = np.stack([SEGMENTS[row](T) for row in rows])
    shapes = [(len(rows), T, heads, HEAD_DIM) for heads in (HEADS, kv_heads, kv_heads, HEADS)]
    q, k, v, weight = (draw.normal(size=shape) for shape in shapes)
    weight *= (segments_BT > 0)[..., None, None]
    return [jnp.asarray(x, dtype) for x in (q, k, v, weight)], jnp.asarray(segments_BT)


def value_and_gradients(attend, q, k, v, weight):
    """Return the outputs that have weight, and the gradients of their weighted sum."""
    value = lambda q, k, v: attend(q, k, v).astype(jnp.float32)
    outputs = jax.jit(value)(q, k, v) * (weight != 0)
    return outputs, *jax.jit(jax.grad(lambda *qkv: jnp.sum(weight * value(*qkv)), argnums=(0, 1, 2)))(q, k, v)


def assert_same(found, wanted, tolerance):
    """Compare as a share of the largest value, or of 1 where all are small (window 1 has no gradient of scores)."""
    for name, ours, theirs in zip(("heads", "dq", "dk", "dv"), found, wanted, strict=True):
        ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
        np.testing.assert_allclose(ours, theirs, atol=tolerance * max(1, np.abs(theirs).max()), rtol=0, err_msg=name)


def splash(segments_BT, window, **options):
    return lambda q, k, v: row_attention(q, k, v, segments_BT, window, "splash", interpret=True, **options)


def xla(segments_BT, window):
    return lambda q, k, v: causal_attention(q, k, v, segments_BT, window)


@pytest.fixture
def small_blocks(monkeypatch):
    """Make rows of a few hundred positions have several blocks."""
    monkeypatch.setattr(kernels, "splash_block", lambda length, window, earlier: 128)


@pytest.mark.parametrize(
    ("T", "window"), [(384, None), (384, 200), (384, 128), (300, None), (300, 512), (300, 129), (300, 5), (300, 1)]
)
def test_splash_equals_the_blocks_of_xla(T, window, small_blocks):
    qkvw, segments_BT = draws(T)
    found = value_and_gradients(splash(segments_BT, window), *qkvw)
    assert_same(found, value_and_gradients(xla(segments_BT, window), *qkvw), 1e-5)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_splash_groups_query_heads_as_we_do(kv_heads, small_blocks):
    qkvw, segments_BT = draws(256, kv_heads)
    found = value_and_gradients(splash(segments_BT, 130), *qkvw)
    assert_same(found, value_and_gradients(xla(segments_BT, 130), *qkvw), 1e-5)


@pytest.mark.parametrize("window", [None, 128])
def test_splash_with_the_blocks_that_it_chooses(window):
    qkvw, segments_BT = draws(330, rows=("packed", "one"))
    found = value_and_gradients(splash(segments_BT, window), *qkvw)
    assert_same(found, value_and_gradients(xla(segments_BT, window), *qkvw), 1e-5)


@pytest.mark.parametrize(("earlier", "window"), [(140, None), (140, 130), (256, 5)])
def test_splash_and_cudnn_behind_earlier_slots_equal_the_last_of_a_row(earlier, window, monkeypatch):
    attention = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn,
        "dot_product_attention",
        lambda *args, implementation, **options: attention(*args, **options, implementation="xla"),
    )
    (q, k, v, weight), segments_BT = draws(300, rows=("one", "short"))
    wanted = xla(segments_BT, window)(q, k, v)[:, earlier:]
    q = q[:, earlier:]
    np.testing.assert_allclose(splash(segments_BT, window)(q, k, v), wanted, atol=1e-5)
    np.testing.assert_allclose(kernels._cudnn(q, k, v, segments_BT, window=window), wanted, atol=1e-5)


def test_splash_in_bfloat16(small_blocks):
    qkvw, segments_BT = draws(300, dtype=jnp.bfloat16)
    found = value_and_gradients(splash(segments_BT, 200), *qkvw)
    wide = value_and_gradients(xla(segments_BT, 200), *(x.astype(jnp.float32) for x in qkvw))
    # Measured: 0.6%, as rounding to 8 bits explains; XLA's blocks differ from float32 by 0.5%.
    assert_same(found, wide, 0.01)
    assert all(x.dtype == jnp.bfloat16 for x in found[1:])
    assert splash(segments_BT, 200)(*qkvw[:3]).dtype == jnp.bfloat16


@pytest.mark.parametrize("window", [None, 5])
def test_zero_slots_of_a_shifted_memory_count_in_the_softmax(window, small_blocks):
    (q, _, _, weight), segments_BT = draws(300)
    draw = np.random.default_rng(1)
    out_BTD = jnp.asarray(draw.normal(size=(*segments_BT.shape, 16)), jnp.float32)
    project = [jnp.asarray(draw.normal(size=(16, KV_HEADS, HEAD_DIM)), jnp.float32) for _ in range(2)]

    def through(attend):
        def outputs(q, out_BTD, project):
            memory_BTD = shift_memory(out_BTD, 2, segments_BT)
            return attend(q, *(jnp.einsum("BTD,DKH->BTKH", memory_BTD, matrix) for matrix in project))

        return outputs

    found, wanted = (
        jax.jit(jax.value_and_grad(lambda *args: jnp.sum(weight * through(attend)(*args)), argnums=(0, 1, 2)))(  # noqa: B023
            q, out_BTD, project
        )
        for attend in (splash(segments_BT, window), xla(segments_BT, window))
    )
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)
    # A document's first query sees its own zero slot only, the second two of them: value 0 whatever the query.
    heads_BTNH = jax.jit(through(splash(segments_BT, window)))(q, out_BTD, project)
    starts = np.flatnonzero(np.diff(segments_BT[1], prepend=0))
    assert not np.any(heads_BTNH[1, starts]) and not np.any(heads_BTNH[1, starts + 1])
    assert np.any(heads_BTNH[1, starts[:-1] + 2])


def test_padding_returns_finite_numbers_and_moves_nothing(small_blocks):
    (q, k, v, weight), segments_BT = draws(300)
    attend = splash(segments_BT, 128)
    assert np.all(np.isfinite(attend(q, k, v)))
    found = value_and_gradients(attend, q, k, v, weight)
    assert all(np.all(np.isfinite(x)) for x in found)
    padding = np.asarray(segments_BT == 0)
    assert padding.any() and not any(np.any(np.asarray(x)[padding]) for x in found[1:])


def mesh_of(devices, **sizes):
    axes = DECODING_AXES if "decode" in sizes else TRAINING_AXES
    sizes.pop("decode", None)
    shape = [sizes.get(name, 1) for name in axes]
    return Mesh(np.reshape(devices, shape), axes, axis_types=(AxisType.Auto,) * len(axes))


@pytest.mark.parametrize(
    ("sizes", "parts"),
    [
        ({"data": 2, "fsdp": 2, "tensor": 2}, 8),
        ({"fsdp": 8}, 1),  # four rows do not divide over eight: all run all
        ({"decode": True, "data": 2, "stack": 2, "tensor": 2}, 4),
    ],
)
def test_splash_on_a_mesh_equals_one_device(sizes, parts, small_blocks):
    qkvw, segments_BT = draws(256, rows=("packed", "short", "one", "short"))
    seen = []

    def watched(q, k, v):
        return splash(segments_BT, 130)(q, k, v)

    wanted = value_and_gradients(xla(segments_BT, 130), *qkvw)
    original = kernels._splash
    with pytest.MonkeyPatch.context() as patch, jax.set_mesh(mesh_of(jax.devices()[:8], **sizes)):
        patch.setattr(kernels, "_splash", lambda q, *args, **kw: seen.append(q.shape) or original(q, *args, **kw))
        found = value_and_gradients(watched, *qkvw)
    assert_same(found, wanted, 1e-5)
    assert all(np.prod(shape) * parts == qkvw[0].size for shape in seen) and seen


def test_splash_inside_of_a_shard_map_is_not_divided_again(small_blocks):
    (q, k, v, _), segments_BT = draws(256, kv_heads=4)
    mesh = mesh_of(jax.devices()[:2], decode=True, tensor=2)
    heads = jax.sharding.PartitionSpec(None, None, "tensor", None)
    inside = jax.shard_map(splash(segments_BT, None), mesh=mesh, in_specs=heads, out_specs=heads, check_vma=False)
    np.testing.assert_allclose(jax.jit(inside)(q, k, v), xla(segments_BT, None)(q, k, v), atol=1e-5)


def test_what_splash_visits_is_what_its_block_is_chosen_by():
    for length, window, block in [(1280, None, 640), (1280, 512, 256), (1280, 129, 128), (1536, 700, 384)]:
        kernel = splash_kernel(length, 2, window, block)
        for info in (kernel.fwd_mask_info, kernel.dq_mask_info, kernel.dkv_mask_info):
            assert np.count_nonzero(info.block_mask) == visited_blocks(length, window, block)


@pytest.mark.parametrize(
    ("length", "window", "block", "earlier"), [(160, None, 256, 1120), (160, None, 128, 1120), (160, 129, 128, 128)]
)
def test_what_splash_visits_behind_earlier_slots(length, window, block, earlier):
    info = splash_kernel(length, 2, window, block, earlier=earlier).fwd_mask_info
    assert np.count_nonzero(info.block_mask) == visited_blocks(length, window, block, earlier)


def test_windows_save_work():
    def scores(length, window):
        block = splash_block(length, window)
        return visited_blocks(length, window, block) * block**2

    assert [splash_block(1280, window) for window in (None, 512, 128)] == [640, 640, 256]
    assert [scores(1280, window) for window in (None, 512, 128)] == [3 * 640**2, 3 * 640**2, 9 * 256**2]
    # Rows of 1280 are too short for a window of 512 to pay; in longer ones it does.
    assert scores(5120, 512) < scores(5120, None) / 2.5
    assert scores(5120, 128) < scores(5120, None) / 5
    for window in (None, 512, 128):
        kernel = splash_kernel(1280, 2, window, 128)
        # The grid shrinks with the window too: a step that visits nothing still costs its time.
        assert kernel.fwd_mask_info.block_mask.shape[1:] == (10, {None: 10, 512: 5, 128: 2}[window])


@pytest.mark.parametrize("window", [None, 5, 200])
def test_cudnn_is_given_the_mask_that_we_mean(window, monkeypatch):
    (q, k, v, weight), segments_BT = draws(300)
    calls = []

    def plain(*args, implementation, **options):
        calls.append((implementation, options["is_causal"], args[0].shape, options["mask"].shape))
        return jax_attention(*args, **options, implementation="xla")

    jax_attention = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", plain)
    cudnn = lambda q, k, v: kernels._cudnn(q, k, v, segments_BT, window=window)
    found = value_and_gradients(cudnn, q, k, v, weight)
    assert_same(found, value_and_gradients(xla(segments_BT, window), q, k, v, weight), 1e-5)
    assert set(calls) == {("cudnn", True, (2, 384, HEADS, HEAD_DIM), (2, 1, 384, 384))}


def test_cudnn_is_lowered_for_each_device_of_a_mesh(monkeypatch):
    internals = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(internals, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(kernels, "compiled_for", lambda: "gpu")
    (q, k, v, weight), segments_BT = draws(300, dtype=jnp.bfloat16)
    attend = lambda q, k, v: row_attention(q, k, v, segments_BT, 128)
    step = jax.jit(lambda *qkv: jax.vjp(attend, *qkv)[1](weight))
    with jax.set_mesh(mesh_of(jax.devices()[:4], fsdp=2, tensor=2)):
        text = step.trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @(\S*fmha\w*)\(.*mask_type\\22: \\22(\w+).*: \(tensor<(\w+)>, tensor<(\w+)>", text)
    local = ("1x384x2x32xbf16", "1x384x1x32xbf16")
    names = "__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"
    assert sorted(calls) == [(name, "CAUSAL", *local) for name in names]


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU; on one, run with JAX_PLATFORMS=cuda")
@pytest.mark.parametrize("window", [None, 5, 200])
def test_cudnn_equals_the_blocks_of_xla(window):
    qkvw, segments_BT = draws(300, dtype=jnp.bfloat16)
    attend = lambda q, k, v: row_attention(q, k, v, segments_BT, window, "cudnn")
    wide = value_and_gradients(xla(segments_BT, window), *(x.astype(jnp.float32) for x in qkvw))
    assert_same(value_and_gradients(attend, *qkvw), wide, 0.02)  # a guess: never run


def test_auto_takes_the_kernel_of_the_platform():
    auto = functools.partial(choose_kernel, "auto", dtype="bfloat16", head_dim=128)
    assert [auto(platform) for platform in ("tpu", "gpu", "cpu")] == ["splash", "cudnn", "xla"]
    assert choose_kernel("auto", "tpu", "float32", 80) == "splash"
    assert choose_kernel("xla", "tpu", "bfloat16", 128) == "xla"
    with warnings.catch_warnings(action="error"):  # no fallback, but what is meant
        assert {choose_kernel("auto", platform, "float64", 128) for platform in ("tpu", "gpu", "cpu")} == {"xla"}


def test_the_platform_is_that_of_the_mesh_in_context():
    tpu = jax.sharding.AbstractDevice(device_kind="TPU v5 lite", num_cores=1, platform="tpu")
    axes = {"axis_sizes": (1, 2, 1, 2), "axis_names": TRAINING_AXES, "axis_types": (AxisType.Auto,) * 4}
    (q, k, v, _), segments_BT = draws(256)
    attend = lambda q, k, v: row_attention(q, k, v, segments_BT, 128)
    assert kernels.compiled_for() == "cpu" and "pallas_call" not in str(jax.make_jaxpr(attend)(q, k, v))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh(**axes, abstract_device=tpu)):
        assert kernels.compiled_for() == "tpu"
        traced = str(jax.make_jaxpr(attend)(q, k, v))
        assert "pallas_call" in traced and "shard_map" in traced
    with jax.set_mesh(mesh_of(jax.devices()[:2], fsdp=2)):
        assert kernels.compiled_for() == "cpu"


@pytest.mark.parametrize(
    ("platform", "dtype", "head_dim", "reason"),
    [
        ("tpu", "bfloat16", 512, "splash does not take model.head_dim=512; use at most 256"),
        ("gpu", "bfloat16", 100, "cudnn does not take model.head_dim=100; use a multiple of 8, at most 128"),
        ("gpu", "float32", 128, "cudnn does not compute in model.compute_dtype='float32'; use 'bfloat16'"),
    ],
)
def test_auto_falls_back_and_says_why(platform, dtype, head_dim, reason):
    with pytest.warns(UserWarning, match=re.escape(reason)):
        assert choose_kernel("auto", platform, dtype, head_dim) == "xla"


@pytest.mark.parametrize(
    ("kernel", "platform", "dtype", "head_dim", "message"),
    [
        ("splash", "cpu", "bfloat16", 128, "'splash' runs on tpu, but this is compiled for cpu; use 'auto', or "),
        ("cudnn", "tpu", "bfloat16", 128, "'cudnn' runs on gpu, but this is compiled for tpu; use 'auto', or "),
        ("splash", "tpu", "float64", 128, "use 'bfloat16' or 'float32', or training.attention='xla'"),
        ("cudnn", "gpu", "bfloat16", 136, "'cudnn' does not take model.head_dim=136; use a multiple of 8, at most 128"),
        ("flash", "tpu", "bfloat16", 128, "unknown training.attention 'flash'; did you mean 'splash'?"),
    ],
)
def test_a_forced_kernel_that_cannot_do_the_job_is_refused(kernel, platform, dtype, head_dim, message):
    with pytest.raises(UserError, match=re.escape(message)):
        choose_kernel(kernel, platform, dtype, head_dim)


def config_of(**model):
    shape = dict(vocab_size=32, model_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, ff_dim=16, layers_per_stack=1)
    return ModelConfig(**shape, num_stacks=2, cross_window=5, **model)


def test_the_forward_pass_hands_the_kernel_down(monkeypatch):
    asked = []
    monkeypatch.setattr(
        stagformer, "row_attention", lambda *args: asked.append(args[4:]) or causal_attention(*args[:5])
    )
    config, ids = config_of(), jnp.ones((1, 8), int)
    params = stagformer.abstract_params(config)
    run = lambda params, **options: stagformer.forward(config, params, ids, ids, ids, **options).stacks
    jax.eval_shape(run, params)
    assert asked == [(None, "auto"), (None, "auto"), (5, "auto")]
    monkeypatch.undo()
    with pytest.raises(UserError, match="'splash' runs on tpu, but this is compiled for cpu"):
        jax.eval_shape(functools.partial(run, attention="splash"), params)


def test_the_config_knows_the_kernels():
    config = Config(config_of(), DataConfig(row_length=128), TrainingConfig(attention="splash"))
    config.check()
    with pytest.raises(UserError, match="unknown training.attention 'cuddn'; did you mean 'cudnn'?"):
        Config(config.model, config.data, TrainingConfig(attention="cuddn")).check()


@pytest.fixture(scope="module")
def v5e():
    """Return the chips of a v5e:2x2 that is not there: libtpu compiles for it all the same."""
    pytest.importorskip("libtpu")
    from jax.experimental import topologies

    # Not asked of the metadata server of a cloud machine; and not refused because another process has libtpu loaded.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": "disabled",
    }.items():
        os.environ.setdefault(name, value)
    return topologies.get_topology_desc("v5e:2x2", platform="tpu").devices


def compiled_for_v5e(mesh, kernel, window=None, B=8, T=1280, H=128, dtype=jnp.bfloat16):
    """Compile attention of 12 heads and its gradients; arguments are heads first, as kernels like them."""
    column = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp"), "tensor"))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
    x_BNTH = jax.ShapeDtypeStruct((B, 12, T, H), dtype, sharding=column)
    segments_BT = jax.ShapeDtypeStruct((B, T), jnp.int32, sharding=rows)

    def step(q_BNTH, k_BNTH, v_BNTH, segments_BT, weight_BNTH):
        def attend(*qkv):
            return jnp.swapaxes(row_attention(*(jnp.swapaxes(x, 1, 2) for x in qkv), segments_BT, window, kernel), 1, 2)

        return jax.vjp(attend, q_BNTH, k_BNTH, v_BNTH)[1](weight_BNTH)

    with jax.set_mesh(mesh):
        return jax.jit(step).lower(x_BNTH, x_BNTH, x_BNTH, segments_BT, x_BNTH).compile()


def test_a_cpu_host_compiles_splash_for_the_tpus_of_a_mesh(v5e):
    assert jax.default_backend() == "cpu" and kernels.compiled_for() == "cpu"
    compiled = compiled_for_v5e(mesh_of(v5e, fsdp=2, tensor=2), "auto", window=128)
    text = compiled.as_text()
    phases = re.findall(r"%(splash_mha_\w+?)[.\d]* = .* custom_call_target=\"tpu_custom_call\"", text)
    assert sorted(phases) == [
        "splash_mha_dkv_segmented_no_residuals",
        "splash_mha_dq_segmented_no_residuals",
        "splash_mha_fwd_segmented_residuals",
    ]
    # Each chip attends to its rows and heads: nothing is exchanged.
    assert not re.findall(r"all-gather|all-reduce|all-to-all|collective-permute", text)


# 8x12x1280x128; the scores of one pass are 315 MB in bfloat16. Splash holds the outputs, and 63 MB of logarithms of the
# softmax's sums, on 128 lanes each. libtpu 0.0.42 needs 66 and 296 MB, 0.0.52 103 and 351.
@pytest.mark.parametrize(
    ("kernel", "least", "most"), [("auto", 63, 115), pytest.param("xla", 280, 390, marks=pytest.mark.slow)]
)
def test_splash_keeps_the_scores_out_of_memory(kernel, least, most, v5e):
    compiled = compiled_for_v5e(mesh_of(v5e[:1]), kernel)
    assert ("tpu_custom_call" in compiled.as_text()) == (kernel == "auto")
    assert least <= compiled.memory_analysis().temp_size_in_bytes / 1e6 <= most


@pytest.mark.parametrize(("T", "H", "dtype"), [(300, 8, "bfloat16"), (640, 256, "float32")])
def test_the_smallest_and_the_largest_heads_compile(T, H, dtype, v5e):
    assert "tpu_custom_call" in compiled_for_v5e(mesh_of(v5e[:1]), "splash", None, 2, T, H, dtype).as_text()
