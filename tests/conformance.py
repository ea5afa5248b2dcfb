"""Compare the model with reference vectors: `python -m tests.conformance FILE...`.

Each `.npz` holds one model (config, weights), its tokens, and the logits and stack outputs of a float64 reference.
A file passes if the largest difference is at most 1e-5 of the largest reference value, for both.
"""

import functools
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from stagjax.config import ModelConfig
from stagjax.decoding.loop import teacher_forced_logits
from stagjax.decoding.placement import RECURRENT, make_placement
from stagjax.model import stagformer

BOUND = 1e-5
FOLDER = pathlib.Path(__file__).parent / "data" / "conformance"


def read(path: pathlib.Path) -> tuple[ModelConfig, dict[str, Any], dict[str, np.ndarray]]:
    """Return a file's model config, its weights as our parameter tree, and its other arrays."""
    with np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    raw = json.loads(str(arrays.pop("config")))
    weights = {name.removeprefix("w/"): arrays.pop(name) for name in list(arrays) if name.startswith("w/")}
    config = ModelConfig(
        vocab_size=raw["vocab"],
        model_dim=raw["dim"],
        num_heads=raw["heads"],
        num_kv_heads=raw["kv_heads"],
        head_dim=raw["head_dim"],
        ff_dim=raw["ff"],
        layers_per_stack=raw["layers"],
        num_stacks=raw["stacks"],
        shared_weights=raw["share"],
        cross_attention=raw["cross"],
        cross_window=raw["window"],
        lag=raw["lag"],
        combine=raw["combine"],
        max_length=raw["max_len"],
        rope_base=raw["rope_base"],
        norm_eps=raw["eps"],
    )
    config.check()
    return config, to_params(config, weights), arrays


def to_params(config: ModelConfig, weights: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return reference weights (heads flattened) as our tree (heads-major)."""
    H = config.head_dim

    def attention(prefix: str, scores: bool) -> dict[str, np.ndarray]:
        tree = {}
        for name in ("query", "key", "value") if scores else ("value",):
            w = weights[f"{prefix}_{name}"]
            tree[name] = w.reshape(*w.shape[:-1], -1, H)
        out = weights[f"{prefix}_out"]
        tree["out"] = out.reshape(*out.shape[:2], -1, H, out.shape[-1])
        return tree

    params = {
        "embedding": weights["embedding"],
        "position_embedding": weights["position_embedding"],
        "blocks": {
            "self_norm": {"scale": weights["self_norm"]},
            "self_attention": attention("self", scores=True),
            "mlp_norm": {"scale": weights["mlp_norm"]},
            "mlp": {name: weights[f"mlp_{name}"] for name in ("gate", "up", "down")},
        },
        "out_norm": {"scale": weights["out_norm"]},
    }
    if config.num_stacks > 1:
        scores = config.cross_window != 1
        params["cross"] = {"attention": attention("cross", scores)}
        if scores and config.cross_attention == "sequential":
            params["cross"]["norm"] = {"scale": weights["cross_norm"]}
    if config.combine == "linear":
        params["combine"] = weights["combine"]
    params = jax.tree.map(jnp.asarray, params)
    expected = jax.tree.map(lambda leaf: leaf.shape, stagformer.abstract_params(config))
    if jax.tree.map(lambda leaf: leaf.shape, params) != expected:
        raise ValueError(f"the weights do not have the shapes of {config}: expected {expected}")
    return params


def differences(path: pathlib.Path) -> dict[str, float]:
    """Return the largest relative difference of logits and, where the file has them, of stack outputs."""
    config, params, arrays = read(path)
    tokens_BT, positions_BT, segment_ids_BT = (arrays[name][None] for name in ("tokens", "positions", "segment_ids"))
    with jax.default_matmul_precision("highest"):
        if "prompt_length" in arrays:
            placement = make_placement(config, mode=RECURRENT)
            logits_BTV = teacher_forced_logits(placement, params, tokens_BT, int(arrays["prompt_length"]))
            return {"logits": relative(logits_BTV[0], arrays["logits"])}
        stacks, logits_BTV = _predict(config, params, tokens_BT, positions_BT, segment_ids_BT)
    stacks = np.stack([out_BTD[0] for out_BTD in stacks])
    return {
        "logits": relative(logits_BTV[0], arrays["logits"]),
        "stack_outputs": relative(stacks, arrays["stack_outputs"]),
    }


@functools.partial(jax.jit, static_argnums=0)
def _predict(config, params, tokens_BT, positions_BT, segment_ids_BT):
    outputs = stagformer.forward(config, params, tokens_BT, positions_BT, segment_ids_BT)
    return outputs.stacks, stagformer.logits(params, stagformer.readout(config, params, outputs.stacks))


def relative(ours: np.ndarray, reference: np.ndarray) -> float:
    """Return max|ours - reference| / max|reference|, infinite where a shape or a value is wrong."""
    ours = np.asarray(ours, np.float64)
    if ours.shape != reference.shape or not np.isfinite(ours).all():
        return float("inf")
    return float(np.max(np.abs(ours - reference)) / np.max(np.abs(reference)))


def main(paths: list[str]) -> int:
    """Print each file's differences; return 1 if one is above the bound."""
    failed = 0
    for path in map(pathlib.Path, paths):
        try:
            found = differences(path)
        except (OSError, KeyError, ValueError) as error:
            print(f"FAIL {path.name:28} {type(error).__name__}: {error}")
            failed += 1
            continue
        passed = max(found.values()) <= BOUND
        failed += not passed
        figures = "  ".join(f"{name} {value:.2e}" for name, value in found.items())
        print(f"{'ok  ' if passed else 'FAIL'} {path.name:28} {figures}")
    print(f"{len(paths) - failed} passed, {failed} failed")
    return 1 if failed or not paths else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or sorted(map(str, FOLDER.glob("*.npz")))))
