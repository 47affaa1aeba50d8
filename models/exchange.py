"""A decoder's weights to and from Hugging Face format: config.json and model.safetensors of a
LlamaForCausalLM, or, with normalised queries and keys, of a Qwen3ForCausalLM. transformers is not needed.

Both compute what `Decoder` computes, from matrices cut in another way: query, key and value are three
there, and so are gate and value of a gated feed-forward ("gate_proj", "up_proj"). Rotary positions turn
the same pairs (k, k + K/2). A multiplier that the format has no place for goes into the weights that it
multiplies: the logits' into the gain of the last norm, that of the residual stream into the projections
that write into it. config.json keeps both numbers under MULTIPLIERS, so that they can be taken out again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.config import DecoderShape
from models.decoder import NORM_EPS, ROTARY_BASE, Decoder

CONFIG, TENSORS = "config.json", "model.safetensors"
MULTIPLIERS = "scaling_sweep_multipliers"

GATED_BY_SILU = "swiglu"  # transformers calls it "silu": hidden_act names the gate's function alone

FIXED = {
    "hidden_act": "silu",
    "rms_norm_eps": NORM_EPS,
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "pretraining_tp": 1,
}
"""What a config.json may say of these where it says anything; the values are transformers' defaults."""


@dataclass(frozen=True)
class Multipliers:
    """Factors of a `Decoder` that are no parameters."""

    output: float = 1.0
    residual: float = 1.0

    def of(self, name: str) -> float:
        """The factor that the parameter `name` takes over."""
        if name == "norm.gain":
            return self.output
        return self.residual if name.endswith("out.weight") else 1.0


@dataclass(frozen=True)
class Weights:
    """A decoder as a value: `tensors` are float32 on the CPU, by the names of Decoder.named_parameters.

    Raises:
        ValueError: a name is missing or unknown, or a tensor has another size than `shape` wants.
    """

    shape: DecoderShape
    tensors: dict[str, Tensor]
    multipliers: Multipliers = Multipliers()

    def __post_init__(self) -> None:
        check_sizes(self.tensors, parameters(self.shape))

    def decoder(self) -> Decoder:
        """A Decoder with a copy of these weights."""
        model = Decoder(self.shape, self.multipliers.output, self.multipliers.residual)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(self.tensors[name])
        return model

    def folded(self) -> Weights:
        """The same function with the multipliers in the weights. Exact where they are powers of two, else
        within one rounding of each number."""
        tensors = {name: scaled(tensor, self.multipliers.of(name)) for name, tensor in self.tensors.items()}
        return Weights(self.shape, tensors)

    def unfolded(self, multipliers: Multipliers) -> Weights:
        """Inverse of `folded`: the same function with `multipliers` taken out of the weights."""
        tensors = {name: scaled(tensor, 1 / multipliers.of(name)) for name, tensor in self.tensors.items()}
        return Weights(self.shape, tensors, multipliers)


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """tensor times factor, rounded once: float32[...]."""
    return tensor if factor == 1.0 else (tensor.double() * factor).float()


def parameters(shape: DecoderShape) -> dict[str, Tensor]:
    """The parameters of a decoder of this shape, without storage."""
    with torch.device("meta"):
        return {name: parameter.detach() for name, parameter in Decoder(shape).named_parameters()}


def check_sizes(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless `found` has the names and sizes of `wanted`."""
    lacking, unknown = wanted.keys() - found.keys(), found.keys() - wanted.keys()
    for what, names in (("lacks", lacking), ("has unknown", unknown)):
        if names:
            some = ", ".join(sorted(names)[:3])
            raise ValueError(f"the model {what} {len(names)} of {len(wanted)} tensors ({some}, ...)")
    for name, tensor in wanted.items():
        if found[name].shape != tensor.shape:
            sizes = tuple(found[name].shape), tuple(tensor.shape)
            raise ValueError(f"{name} is of size {sizes[0]}; the shape wants {sizes[1]}")


def architecture(shape: DecoderShape) -> str:
    """The class of transformers that computes what a decoder of this shape computes.

    Raises ValueError where there is none.
    """
    if shape.activation != GATED_BY_SILU:
        raise ValueError(
            f"activation {shape.activation!r} has no counterpart: LlamaForCausalLM and Qwen3ForCausalLM have "
            f"a feed-forward gated by SiLU, here {GATED_BY_SILU!r}"
        )
    return "Qwen3ForCausalLM" if shape.qk_norm else "LlamaForCausalLM"


def to_config(shape: DecoderShape, multipliers: Multipliers, end_of_document: int | None) -> dict[str, Any]:
    """config.json for weights of this shape, from which `multipliers` can be taken out again.

    `end_of_document` is the token that ends a generated text. No token is named for padding:
    transformers would leave the gradient of its embedding out.
    """
    name = architecture(shape)
    return {
        "architectures": [name],
        "model_type": name.removesuffix("ForCausalLM").lower(),
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.d_model,
        "intermediate_size": shape.d_ff,
        "num_hidden_layers": shape.n_layer,
        "num_attention_heads": shape.n_head,
        "num_key_value_heads": shape.n_head,
        "head_dim": shape.head_size,
        "max_position_embeddings": shape.seq_len,
        "tie_word_embeddings": shape.tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROTARY_BASE},
        "rope_theta": ROTARY_BASE,  # where transformers before 5 looks for it
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": end_of_document,
        "pad_token_id": None,
        "dtype": "float32",
        **FIXED,
        **({MULTIPLIERS: asdict(multipliers)} if multipliers != Multipliers() else {}),
    }


def from_config(config: Mapping[str, Any]) -> DecoderShape:
    """The shape that a config.json describes.

    Raises:
        ValueError: a key is missing, or names something that `Decoder` does not do; all that are found
            are named.
    """
    kind = config.get("model_type")
    if kind not in ("llama", "qwen3"):
        raise ValueError(f"model_type {kind!r} cannot be read, only 'llama' and 'qwen3'")
    names = {
        "n_layer": "num_hidden_layers",
        "d_model": "hidden_size",
        "n_head": "num_attention_heads",
        "d_ff": "intermediate_size",
        "vocab_size": "vocab_size",
        "seq_len": "max_position_embeddings",
    }
    missing = [name for name in names.values() if not isinstance(config.get(name), int)]
    if missing:
        raise ValueError(f"no whole number for {', '.join(missing)}")
    tied = bool(config.get("tie_word_embeddings", False))
    sizes = {ours: config[theirs] for ours, theirs in names.items()}
    shape = DecoderShape(**sizes, activation=GATED_BY_SILU, qk_norm=kind == "qwen3", tied=tied)
    rotary = {"rope_type": "default"}
    for before_5_or_since in ("rope_scaling", "rope_parameters"):
        rotary |= config.get(before_5_or_since) or {}
    wanted_and_found = {
        **{name: (wanted, config.get(name, wanted)) for name, wanted in FIXED.items()},
        "num_key_value_heads": (shape.n_head, config.get("num_key_value_heads")),
        "head_dim": (shape.head_size, config.get("head_dim")),
        "rope_type": ("default", rotary["rope_type"]),
        "rope_theta": (ROTARY_BASE, rotary.get("rope_theta", config.get("rope_theta"))),
    }
    unlike = [
        f"{name}={found!r} (wanted {wanted!r})"
        for name, (wanted, found) in wanted_and_found.items()
        if found is not None and found != wanted
    ]
    if unlike:
        raise ValueError(f"the decoder trained here has no {', no '.join(unlike)}")
    return shape


def to_hugging_face(tensors: Mapping[str, Tensor], shape: DecoderShape) -> dict[str, Tensor]:
    """`tensors` (parameters, or their gradients) cut and named as transformers does; views where it can.

    Raises ValueError for an architecture without a counterpart.
    """
    architecture(shape)
    result = {theirs: tensors[ours] for theirs, ours in outside_layers(shape).items()}
    for layer in range(shape.n_layer):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        for their_name, our_name in WHOLE.items():
            result[theirs + their_name] = tensors[ours + our_name]
        for their_names, our_name in parts(shape).items():
            pieces = tensors[ours + our_name].chunk(len(their_names))
            for their_name, piece in zip(their_names, pieces, strict=True):
                result[theirs + their_name] = piece[0] if our_name == "attention.qk_gain" else piece
    return result


def from_hugging_face(tensors: Mapping[str, Tensor], shape: DecoderShape) -> dict[str, Tensor]:
    """Inverse of `to_hugging_face`.

    Raises ValueError for a tensor that is missing, unknown or of another size.
    """
    check_sizes(tensors, to_hugging_face(parameters(shape), shape))
    result = {ours: tensors[theirs] for theirs, ours in outside_layers(shape).items()}
    for layer in range(shape.n_layer):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        for their_name, our_name in WHOLE.items():
            result[ours + our_name] = tensors[theirs + their_name]
        for their_names, our_name in parts(shape).items():
            join = torch.stack if our_name == "attention.qk_gain" else torch.cat
            result[ours + our_name] = join([tensors[theirs + name] for name in their_names])
    return result


def outside_layers(shape: DecoderShape) -> dict[str, str]:
    """Tensors before and after the layers, by their name there."""
    result = {"model.embed_tokens.weight": "embedding.weight", "model.norm.weight": "norm.gain"}
    return result if shape.tied else {**result, "lm_head.weight": "head.weight"}


WHOLE = {
    "input_layernorm.weight": "attention_norm.gain",
    "self_attn.o_proj.weight": "attention.out.weight",
    "post_attention_layernorm.weight": "feed_forward_norm.gain",
    "mlp.down_proj.weight": "feed_forward.out.weight",
}
"""Tensors of a layer that are one there and one here."""


def parts(shape: DecoderShape) -> dict[tuple[str, ...], str]:
    """Tensors of a layer that are several there and one here, in the order that they have here."""
    result = {
        tuple(f"self_attn.{name}_proj.weight" for name in "qkv"): "attention.qkv.weight",
        ("mlp.gate_proj.weight", "mlp.up_proj.weight"): "feed_forward.into.weight",
    }
    if shape.qk_norm:
        result[tuple(f"self_attn.{name}_norm.weight" for name in "qk")] = "attention.qk_gain"
    return result


def write_hugging_face(weights: Weights, folder: Path, end_of_document: int | None) -> None:
    """Write config.json, generation_config.json and model.safetensors (float32) into `folder`.

    Raises ValueError, before anything is written, for an architecture without a counterpart; OSError.
    """
    config = to_config(weights.shape, weights.multipliers, end_of_document)
    tensors = to_hugging_face(weights.folded().tensors, weights.shape)
    generation = {"eos_token_id": end_of_document, "pad_token_id": end_of_document}
    for name, content in ((CONFIG, config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    own = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    save_file(own, folder / TENSORS, metadata={"format": "pt"})


def read_hugging_face(folder: Path) -> Weights:
    """The weights in a folder as `save_pretrained` or `write_hugging_face` leave it, in one file or in
    several; bfloat16 and float16 become float32.

    Multipliers that config.json names are taken out of the weights again: bit for bit what was written
    where they are powers of two, else within one rounding of each number.

    Raises:
        ValueError: a file is missing or damaged, or it describes what `Decoder` does not do.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        shape = from_config(config)
        multipliers = Multipliers(**config.get(MULTIPLIERS, {}))
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no {CONFIG}: it is no model in Hugging Face format") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error
    if not all(math.isfinite(factor) and factor > 0 for factor in asdict(multipliers).values()):
        raise ValueError(f"{folder / CONFIG}: {MULTIPLIERS} must be positive, not {asdict(multipliers)}")
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ValueError(f"{folder} has no {TENSORS}")
    try:
        found = {name: tensor.float() for file in files for name, tensor in load_file(file).items()}
        if shape.tied and "lm_head.weight" in found:
            head = found.pop("lm_head.weight")
            if not torch.equal(head, found["model.embed_tokens.weight"]):
                raise ValueError("tie_word_embeddings is true, but lm_head.weight is not the embedding")
        return Weights(shape, from_hugging_face(found, shape)).unfolded(multipliers)
    except (ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"{folder}: {error}") from error
