"""A decoder's weights to and from Hugging Face's format: config.json and model.safetensors.

With QK-norm a decoder is a `Qwen3ForCausalLM`, without it a `LlamaForCausalLM`; both normalise,
rotate (half-split) and gate as `models.decoder` does. Nothing here needs `transformers`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.config import DecoderShape
from models.decoder import NORM_EPS, ROTARY_BASE

ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
WEIGHTS = "model.safetensors"


def to_hugging_face(weights: dict[str, Tensor], shape: DecoderShape, multiplier: float = 1.0) -> dict[str, Tensor]:
    """A `Decoder`'s parameters under Hugging Face's names, float32. The logits' `multiplier`, which has
    no counterpart there, goes into the final norm's gain: exact where it is a power of two, else to
    one rounding.

    Raises ValueError for an activation that has no counterpart.
    """
    _check_activation(shape)
    theirs = {
        "model.embed_tokens.weight": weights["embedding.weight"],
        "model.norm.weight": weights["norm.gain"] * multiplier,
    }
    if not shape.tied:
        theirs["lm_head.weight"] = weights["head.weight"]
    for layer in range(shape.n_layer):
        ours, block = f"blocks.{layer}.", f"model.layers.{layer}."
        parts = weights[ours + "attention.qkv.weight"].chunk(3)
        for name, part in zip("qkv", parts, strict=True):
            theirs[f"{block}self_attn.{name}_proj.weight"] = part
        if shape.qk_norm:
            for name, gain in zip("qk", weights[ours + "attention.qk_gain"], strict=True):
                theirs[f"{block}self_attn.{name}_norm.weight"] = gain
        gate, up = weights[ours + "feed_forward.into.weight"].chunk(2)
        theirs[block + "mlp.gate_proj.weight"], theirs[block + "mlp.up_proj.weight"] = gate, up
        for ours_name, name in _SAME.items():
            theirs[block + name] = weights[ours + ours_name]
    return {name: tensor.detach().float().clone() for name, tensor in theirs.items()}


def from_hugging_face(weights: dict[str, Tensor], shape: DecoderShape) -> dict[str, Tensor]:
    """Inverse of `to_hugging_face` with a multiplier of 1. Raises ValueError for missing or further tensors."""
    left = dict(weights)
    if shape.tied:
        left.pop("lm_head.weight", None)

    def take(name: str) -> Tensor:
        if name not in left:
            raise ValueError(f"the weights hold no {name}, which their config.json asks for")
        return left.pop(name).float()

    ours = {"embedding.weight": take("model.embed_tokens.weight"), "norm.gain": take("model.norm.weight")}
    if not shape.tied:
        ours["head.weight"] = take("lm_head.weight")
    for layer in range(shape.n_layer):
        mine, block = f"blocks.{layer}.", f"model.layers.{layer}."
        ours[mine + "attention.qkv.weight"] = torch.cat([take(f"{block}self_attn.{x}_proj.weight") for x in "qkv"])
        if shape.qk_norm:
            ours[mine + "attention.qk_gain"] = torch.stack([take(f"{block}self_attn.{x}_norm.weight") for x in "qk"])
        into = [take(f"{block}mlp.{x}_proj.weight") for x in ("gate", "up")]
        ours[mine + "feed_forward.into.weight"] = torch.cat(into)
        for name, theirs in _SAME.items():
            ours[mine + name] = take(block + theirs)
    if left:
        raise ValueError(f"the weights hold tensors that this decoder has no place for: {', '.join(sorted(left))}")
    return ours


def hugging_face_config(shape: DecoderShape, end_of_document: int | None = None) -> dict[str, Any]:
    """What config.json says. Raises ValueError for an activation that has no counterpart."""
    _check_activation(shape)
    kind = "qwen3" if shape.qk_norm else "llama"
    return {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_head,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "max_position_embeddings": shape.seq_len,
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROTARY_BASE,  # read by transformers 4
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},  # read by transformers 5
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": end_of_document,
        "pad_token_id": None,  # its embedding would get no gradient
        "torch_dtype": "float32",
    }


def shape_of(config: dict[str, Any]) -> DecoderShape:
    """The shape that a config.json describes. Raises ValueError where a `Decoder` cannot be that model."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise ValueError(f"model_type {kind!r} is none of {', '.join(ARCHITECTURES)}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    d_model, n_head = config["hidden_size"], config["num_attention_heads"]
    wanted = {
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "num_key_value_heads": (config.get("num_key_value_heads") or n_head, n_head),
        "head_dim": (config.get("head_dim") or d_model // n_head, d_model // n_head),
        "rms_norm_eps": (config.get("rms_norm_eps", 1e-6), NORM_EPS),
        "rope_theta": (rope.get("rope_theta", config.get("rope_theta", 10_000.0)), ROTARY_BASE),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "attention_bias": (config.get("attention_bias", False), False),
        "mlp_bias": (config.get("mlp_bias", False), False),
        "use_sliding_window": (config.get("use_sliding_window", False), False),
    }
    for name, (found, needed) in wanted.items():
        if found != needed:
            raise ValueError(f"config.json has {name}={found!r}; this decoder is made with {needed!r} alone")
    return DecoderShape(
        n_layer=config["num_hidden_layers"], d_model=d_model, n_head=n_head,
        d_ff=config["intermediate_size"], vocab_size=config["vocab_size"],
        seq_len=config["max_position_embeddings"], activation="swiglu",
        qk_norm=kind == "qwen3", tied=config.get("tie_word_embeddings", False),
    )  # fmt: skip


def write_hugging_face(
    folder: Path, weights: dict[str, Tensor], shape: DecoderShape, multiplier: float, end_of_document: int | None
) -> None:
    """Write config.json, generation_config.json and model.safetensors into `folder`. Raises ValueError as `to_hugging_face` does."""
    tensors, config = to_hugging_face(weights, shape, multiplier), hugging_face_config(shape, end_of_document)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    generation = {"eos_token_id": end_of_document, "pad_token_id": end_of_document}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")


def read_hugging_face(folder: Path) -> tuple[DecoderShape, dict[str, Tensor]]:
    """Shape and a `Decoder`'s parameters, float32, of a folder with config.json and one or more .safetensors.

    Raises ValueError for a model that a `Decoder` cannot be, and for a folder without weights.
    """
    try:
        shape = shape_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except KeyError as missing:
        raise ValueError(f"{folder / 'config.json'} has no {missing}") from missing
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no .safetensors file")
    weights = {name: tensor for file in files for name, tensor in load_file(file).items()}
    return shape, from_hugging_face(weights, shape)


_SAME = {
    "attention_norm.gain": "input_layernorm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "feed_forward_norm.gain": "post_attention_layernorm.weight",
    "feed_forward.out.weight": "mlp.down_proj.weight",
}


def _check_activation(shape: DecoderShape) -> None:
    if shape.activation != "swiglu":
        raise ValueError(
            f"activation {shape.activation!r}: Llama's and Qwen3's feed-forward is exported for swiglu alone "
            "(relu2 and gelu are not gated there; geglu is not supported)"
        )
