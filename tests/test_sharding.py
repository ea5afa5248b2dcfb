"""The sharding table: every parameter of every variant matches one rule, and no rule is without a parameter."""

import fnmatch

import jax
import pytest
from jax.sharding import PartitionSpec

from stagjax.config import MeshConfig
from stagjax.errors import UserError
from stagjax.mesh import DecodeMesh, decoding_mesh, training_mesh
from stagjax.model.stagformer import abstract_params
from stagjax.sharding import (
    RULES,
    TABLE,
    check_training,
    logical_axes,
    parameter_path,
    parameter_shardings,
    stored_shardings,
)
from tests.variants import VARIANTS, tiny


def paths(config):
    leaves, _ = jax.tree_util.tree_flatten_with_path(abstract_params(config))
    return {parameter_path(path): leaf for path, leaf in leaves}


def test_every_parameter_matches_one_rule_and_every_rule_a_parameter():
    used = set()
    for config in VARIANTS.values():
        for path, leaf in paths(config).items():
            assert len(logical_axes(path)) == leaf.ndim
            assert set(logical_axes(path)) - {None} <= set(TABLE)
            used |= {pattern for pattern, _ in RULES if fnmatch.fnmatchcase(path, pattern)}
    assert used == {pattern for pattern, _ in RULES}


def test_an_unknown_parameter_is_an_error():
    with pytest.raises(ValueError, match="0 sharding rules match the parameter 'blocks/mlp/bias'"):
        logical_axes("blocks/mlp/bias")


def test_training_column():
    shardings = parameter_shardings(training_mesh(MeshConfig(tensor=2)), abstract_params(tiny(vocab_size=64)))
    assert shardings["embedding"].spec == PartitionSpec(("tensor",), ("fsdp",))
    assert shardings["blocks"]["self_attention"]["query"].spec == PartitionSpec(
        ("stack",), None, ("fsdp",), ("tensor",), None
    )
    assert shardings["blocks"]["mlp"]["down"].spec == PartitionSpec(("stack",), None, ("tensor",), ("fsdp",))


def test_a_slice_holds_its_own_stack_and_a_copy_of_what_slices_do_not_divide():
    mesh = training_mesh(MeshConfig(stack=2))
    separate = parameter_shardings(mesh, abstract_params(tiny()))
    shared = parameter_shardings(mesh, abstract_params(tiny(shared_weights=True)))
    assert separate["blocks"]["mlp"]["down"].spec == PartitionSpec(("stack",), None, ("tensor",), ("fsdp",))
    assert separate["out_norm"]["scale"].spec == PartitionSpec(("stack",), None)
    assert shared["blocks"]["mlp"]["down"].spec == PartitionSpec(None, None, ("tensor",), ("fsdp",))
    for params in (separate, shared):
        assert params["cross"]["attention"]["out"].spec == PartitionSpec(None, None, ("tensor",), None, ("fsdp",))


def test_what_does_not_divide_is_read_whole_onto_a_decoding_mesh():
    mesh = decoding_mesh(DecodeMesh(stack=2, tensor=4))
    shardings = stored_shardings(mesh, abstract_params(tiny(num_heads=6, num_kv_heads=6)))
    query, gate = shardings["blocks"]["self_attention"]["query"], shardings["blocks"]["mlp"]["gate"]
    assert query.spec == PartitionSpec(("stack",), None, None, None, None)
    assert gate.spec == PartitionSpec(("stack",), None, None, ("tensor",))


@pytest.mark.parametrize(
    ("config", "rows", "message"),
    [
        (tiny(num_heads=3, num_kv_heads=3), 8, "model.num_heads=3 does not divide over mesh.tensor=2; use 1, 3"),
        (tiny(), 8, "model.vocab_size=61 does not divide over mesh.tensor=2; use 1, 61, or model.vocab_size=62"),
        (tiny(vocab_size=64), 6, "= 6 rows do not divide over mesh.data=1 x mesh.fsdp=4; use a multiple of 4 rows"),
    ],
)
def test_what_training_cannot_divide_is_refused(config, rows, message):
    with pytest.raises(UserError, match=message):
        check_training(config, training_mesh(MeshConfig(tensor=2)), rows)
