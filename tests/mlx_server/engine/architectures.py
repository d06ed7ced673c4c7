"""Tiny configs for architectures of mlx-lm that have a rotary embedding, as transformers 4 wrote them."""

import dataclasses
import importlib
from typing import Any

Config = dict[str, Any]

_LAYERS = 4
_SHAPE: Config = {
    **dict.fromkeys(("hidden_size", "n_embd", "hidden_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "num_heads", "n_head", "num_experts", "num_local_experts"), 4),
    **dict.fromkeys(("n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_attention_groups"), 2),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "linear_num_key_heads", "group_norm_size"), 2),
    **dict.fromkeys(("head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size"), 128),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("expert_ffn_hidden_size", "kv_lora_rank", "q_lora_rank", "sliding_window"), 32),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"), 1e-5),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "num_shared_experts", "zero_expert_num"), 1),
    **dict.fromkeys(("decoder_sparse_step", "first_k_dense_replace", "num_kv_reuse_layers"), 1),
    **dict.fromkeys(("routed_scaling_factor", "logits_scaling", "residual_multiplier", "embedding_multiplier"), 1.0),
    **dict.fromkeys(("scale_depth", "scale_emb", "attention_multiplier"), 1.0),
    **dict.fromkeys(("tie_word_embeddings", "norm_topk_prob", "qk_norm", "linear_allow_neg_eigval"), True),
    **dict.fromkeys(("mla_scale_q_lora", "mla_scale_kv_lora", "post_norm"), True),
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_bias", "use_qkv_bias"), False),
    **dict.fromkeys(("partial_rotary_factor", "rotary_pct"), 0.5),
    "linear_num_value_heads": 4,
    "linear_conv_kernel_dim": 4,
    "rotary_dim": 8,
    "mlp_only_layers": [],
    "layer_group_size": 2,
    "full_attention_interval": 2,
    "dim_model_base": 64,
    "zero_expert_type": "identity",
    "hidden_act": "relu2",
    "attention_method": "MLA",
    "max_position_embeddings": 512,
    "vocab_size": 128,
    "rope_theta": 54321.0,
    "rotary_emb_base": 54321,
    "block_size": 512,
}
_SLIDING = ["sliding_attention", "full_attention"] * (_LAYERS // 2)
_YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
_LONG = {"type": "longrope", "long_factor": [2.0] * 8, "short_factor": [1.0] * 8}
_OWN: dict[str, Config] = {
    "dbrx": {
        "n_layers": _LAYERS,
        "d_model": 64,
        "n_heads": 4,
        "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 54321.0},
    },
    "deepseek_v2": {"rope_scaling": _YARN | {"mscale": 0.7, "mscale_all_dim": 0.7}},
    "exaone4": {"sliding_window_pattern": "LG", "rope_scaling": None},
    "gemma": {"num_key_value_heads": 1},
    "gemma3_text": {"sliding_window_pattern": 2, "rope_local_base_freq": 432.0, "num_key_value_heads": 2},
    "glm4_moe": {"rope_scaling": None, "use_qk_norm": True},
    "lfm2": {
        "block_dim": 64,
        "block_ff_dim": 128,
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_multiple_of": 16,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"] * (_LAYERS // 2),
    },
    "mimo_v2_flash": {
        "num_experts_per_tok": 2,
        "moe_layer_freq": [0, 1, 1, 1],
        "hybrid_layer_pattern": [1, 0, 1, 0],
        "sliding_window_size": 32,
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "swa_rope_theta": 432.0,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 16,
        "swa_v_head_dim": 16,
        "n_shared_experts": None,
        "layernorm_epsilon": 1e-5,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    "minicpm3": {"rope_scaling": _LONG | {"original_max_position_embeddings": 64}},
    "olmo3": {"layer_types": _SLIDING},
    "phi3": {"rope_scaling": _LONG, "original_max_position_embeddings": 64, "partial_rotary_factor": 1.0},
    "qwen2": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "smollm3": {"rope_scaling": _YARN},
}

ARCHITECTURES = [
    *("Klear", "afm7", "apertus", "bailing_hybrid", "bailing_moe", "bailing_moe_linear", "cohere", "cohere2", "dbrx"),
    *("deepseek", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5", "ernie4_5_moe", "exaone"),
    *("exaone4", "falcon_h1", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "glm4_moe", "glm4_moe_lite"),
    *("gpt_neox", "gpt_oss", "granite", "granitemoe", "helium", "hunyuan_v1_dense", "internlm2", "internlm3"),
    *("iquestloopcoder", "lfm2", "lille-130m", "llama", "longcat_flash", "mimo", "mimo_v2_flash", "minicpm"),
    *("minicpm3", "minimax", "mixtral", "nanbeige", "nanochat", "nemotron", "olmo2", "olmo3", "olmo_hybrid"),
    *("olmoe", "phi", "phi3", "plamo3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "seed_oss"),
    *("smollm3", "solar_open", "stablelm", "starcoder2", "talkie", "telechat3", "youtu_llm"),
]


def tiny_config(architecture: str) -> Config:
    fields = {field.name for field in dataclasses.fields(importlib.import_module(_module(architecture)).ModelArgs)}
    shape = {name: value for name, value in _SHAPE.items() if name in fields}
    return shape | {"model_type": architecture} | _OWN.get(architecture, {})


def _module(architecture: str) -> str:
    return f"mlx_lm.models.{architecture}"


def as_transformers_5_writes_it(config: Config) -> Config:
    """The rotary embedding's settings in `rope_parameters`, and nowhere else."""
    new: Config = {
        name: as_transformers_5_writes_it(value) if name == "text_config" else value for name, value in config.items()
    }
    theta = new.pop("rope_theta", new.pop("rotary_emb_base", None))
    if theta is None:
        return new
    scaling = new.pop("rope_scaling", None) or {}
    parameters: Config = {"rope_type": scaling.get("type", "default"), "rope_theta": theta, **scaling}
    parameters.pop("type", None)
    rotated = new.pop("rotary_dim", None)
    partial = new.pop("partial_rotary_factor", new.pop("rotary_pct", rotated / 16 if rotated else None))
    if partial is not None:
        parameters["partial_rotary_factor"] = partial
    local_theta = new.pop("rope_local_base_freq", new.pop("swa_rope_theta", None))
    if local_theta is not None:
        local = parameters | {"rope_type": "default", "rope_theta": local_theta}
        parameters = {"full_attention": parameters, "sliding_attention": local}
    return new | {"rope_parameters": parameters}
