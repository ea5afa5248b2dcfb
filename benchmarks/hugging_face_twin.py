"""A Hugging Face Llama that computes what a baseline of stagjax does, with its weights, and a tokenizer of bytes.

The one difference, the learned position embedding, is set to zero on our side.
"""

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
import torch
import transformers

from stagjax.config import Config, DataConfig, ModelConfig, TrainingConfig
from stagjax.data.vocabulary import BOS, EOS, PAD, ByteVocabulary
from stagjax.library import LanguageModel
from stagjax.model.stagformer import Params, init_params

SPECIALS = {"<pad>": PAD, "<s>": BOS, "</s>": EOS}


def baseline(layers: int, width: int, max_length: int) -> LanguageModel:
    """Return a baseline of bytes with random parameters that a twin can have.

    Output norms are lowered: an untrained model expects the token that it reads once more, with all its weight.
    """
    model = ModelConfig(
        vocab_size=ByteVocabulary().size,
        model_dim=width,
        num_heads=width // 64,
        num_kv_heads=width // 64,
        head_dim=64,
        ff_dim=4 * width,
        layers_per_stack=layers,
        max_length=max_length,
    )
    params = init_params(model, jax.random.key(0))
    params["position_embedding"] = jnp.zeros_like(params["position_embedding"])
    params["out_norm"]["scale"] *= 0.3
    config = Config(model, DataConfig(row_length=max_length), TrainingConfig())
    return LanguageModel(config, params, ByteVocabulary(), 0)


def twin(config: ModelConfig, params: Params) -> transformers.LlamaForCausalLM:
    """Return the Llama with a baseline's weights, float32."""
    if config.num_stacks != 1 or np.abs(np.asarray(params["position_embedding"])).max() > 0:
        raise ValueError("only a baseline whose position embedding is zero has a twin")
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.model_dim,
            intermediate_size=config.ff_dim,
            num_hidden_layers=config.layers_per_stack,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            hidden_act="gelu_pytorch_tanh",
            rms_norm_eps=config.norm_eps,
            rope_theta=config.rope_base,
            # Ours is scaled by sqrt(D) where it is read; Llama's is not, so it cannot be tied.
            tie_word_embeddings=False,
            max_position_embeddings=config.max_length,
            attn_implementation="sdpa",
            bos_token_id=BOS,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
    )
    weights = _weights(config, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params))
    model.load_state_dict({name: torch.from_numpy(np.array(leaf, order="C")) for name, leaf in weights.items()})
    return model.eval()


def byte_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return the byte vocabulary as a tokenizer in Rust, which puts BOS first."""
    shown = _shown_bytes()
    ids = SPECIALS | {character: 3 + value for value, character in shown.items()}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _weights(config: ModelConfig, params: Params) -> dict[str, np.ndarray]:
    """Return Llama's state dict: its matrices are [out, in]."""
    D = config.model_dim
    blocks = params["blocks"]
    weights = {
        "model.embed_tokens.weight": params["embedding"] * D**0.5,
        "lm_head.weight": params["embedding"],
        "model.norm.weight": params["out_norm"]["scale"][0],
    }
    for l in range(config.layers_per_stack):
        attention, mlp, prefix = blocks["self_attention"], blocks["mlp"], f"model.layers.{l}"
        weights |= {
            f"{prefix}.input_layernorm.weight": blocks["self_norm"]["scale"][0, l],
            f"{prefix}.post_attention_layernorm.weight": blocks["mlp_norm"]["scale"][0, l],
            f"{prefix}.self_attn.o_proj.weight": attention["out"][0, l].reshape(-1, D).T,
        }
        for name, ours in (("q", "query"), ("k", "key"), ("v", "value")):
            weights[f"{prefix}.self_attn.{name}_proj.weight"] = attention[ours][0, l].reshape(D, -1).T
        for name in ("gate", "up", "down"):
            weights[f"{prefix}.mlp.{name}_proj.weight"] = mlp[name][0, l].T
    return weights


def _shown_bytes() -> dict[int, str]:
    """Return the character by which the byte-level pre-tokenizer shows each byte (GPT-2's table).

    Printable bytes of Latin-1 are themselves, all others follow from U+0100 on, in order.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [value for value in range(256) if value not in printable]
    return {value: chr(value) for value in printable} | {value: chr(256 + n) for n, value in enumerate(others)}
