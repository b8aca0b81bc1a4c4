"""Example calls of denoisers made from their configs alone, on small latents. Must not know pipelines or weights.

One function for each diffusers class. What a forward asks for and the configs do not say (a grid of tokens, packed
indices) is written down here once, for tiny and for public sizes alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import quant
from pipelines.families import UnsupportedModel, role_of

TOKENS = 7
"""Tokens of an example's text."""

SIDE = 4
"""Tokens along each side of an example's picture, in transformers."""

FRAMES = 2
"""Tokens along an example video's time."""


class Draw:
    """Random tensors for `rows` rows, by seed, and the rows' timesteps as parts of the whole way, 1 down to 0."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows = rows
        self._generator = torch.Generator().manual_seed(seed)
        self.part = 1.0 - torch.arange(rows) / max(4, rows)

    def normal(self, *shape: int) -> Tensor:
        """[rows, *shape] float32."""
        return torch.randn(self.rows, *shape, generator=self._generator)

    def below(self, limit: int) -> Tensor:
        """[rows] int64 in 0..limit-1."""
        return torch.randint(limit, (self.rows,), generator=self._generator)

    def full(self, value: float, *shape: int) -> Tensor:
        """[rows, *shape] float32, all equal."""
        return torch.full((self.rows, *shape), value)

    @property
    def index(self) -> Tensor:
        """[rows] int64, timesteps of 1000."""
        return (self.part * 999).long()


Arguments = dict[str, Any]
Config = Mapping[str, Any]


def example_call(module: nn.Module, rows: int = 1, *, seed: int = 0, per_token: bool = False) -> quant.Call:
    """A call of `rows` rows, each at another time, that a denoiser's forward takes: float32 on the CPU.

    Args:
        module: a diffusers model; its config is read, its weights are not.
        rows: B.
        seed: of everything random.
        per_token: as in image-to-video, where the tokens of a given frame have timestep 0: timesteps [B, L].

    Raises:
        UnsupportedModel: no example is known for its class.
    """
    kind = type(module).__name__
    if kind not in EXAMPLES:
        raise UnsupportedModel(f"no example call is known for {kind}; there are {', '.join(sorted(EXAMPLES))}")
    arguments = EXAMPLES[kind](module.config, Draw(rows, seed))  # type: ignore[arg-type]
    if per_token:
        arguments["timestep"] = _per_token(arguments)
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    shared = {name: value for name, value in tensors.items() if name in SHARED.get(kind, ())}
    return quant.Call(
        rows={name: value for name, value in tensors.items() if name not in shared},
        clock=quant.StepClock(torch.arange(rows), torch.full((rows,), max(4, rows)), torch.arange(rows) % 2),
        shared=shared,
        constants={name: value for name, value in arguments.items() if name not in tensors} | {"return_dict": False},
        roles={name: role_of(name.removesuffix("[]")) for name in tensors},
    )


def _per_token(arguments: Arguments) -> Tensor:
    """Timesteps [B, L] of B rows whose first frame is given: 0 on its tokens."""
    timestep: Tensor = arguments["timestep"]
    mask = torch.ones(FRAMES, SIDE * SIDE)
    mask[0] = 0
    return timestep[:, None] * mask.flatten()[None].to(timestep)


def _unet(config: Config, draw: Draw) -> Arguments:
    side = 2 ** max(3, len(config["block_out_channels"]) - 1)
    made: Arguments = {"sample": draw.normal(config["in_channels"], side, side), "timestep": draw.index}
    if config.get("num_class_embeds"):
        made["class_labels"] = draw.below(config["num_class_embeds"])
    if "cross_attention_dim" not in config:
        return made
    made["encoder_hidden_states"] = draw.normal(TOKENS, config["cross_attention_dim"])
    if config["time_cond_proj_dim"]:
        made["timestep_cond"] = draw.normal(config["time_cond_proj_dim"])
    if config["addition_embed_type"] == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        made["added_cond_kwargs.text_embeds"] = draw.normal(pooled)
        made["added_cond_kwargs.time_ids"] = draw.full(64.0, 6)
    return made


def _pixart(config: Config, draw: Draw) -> Arguments:
    side = SIDE * config["patch_size"]
    made: Arguments = {
        "hidden_states": draw.normal(config["in_channels"], side, side),
        "timestep": draw.index,
        "encoder_hidden_states": draw.normal(TOKENS, config["caption_channels"]),
        "encoder_attention_mask": draw.full(1.0, TOKENS),
    }
    asked = config["use_additional_conditions"]
    sized = config["sample_size"] == 128 if asked is None else asked
    made["added_cond_kwargs.resolution"] = draw.full(1024.0, 2) if sized else None
    made["added_cond_kwargs.aspect_ratio"] = draw.full(1.0, 1) if sized else None
    return made


def _dit(config: Config, draw: Draw) -> Arguments:
    side = SIDE * config["patch_size"]
    return {
        "hidden_states": draw.normal(config["in_channels"], side, side),
        "timestep": draw.index,
        "class_labels": draw.below(config["num_embeds_ada_norm"]),
    }


def _sana(config: Config, draw: Draw) -> Arguments:
    made = {
        "hidden_states": draw.normal(config["in_channels"], SIDE, SIDE),
        "timestep": draw.index,
        "encoder_hidden_states": draw.normal(TOKENS, config["caption_channels"]),
        "encoder_attention_mask": draw.full(1.0, TOKENS),
    }
    return made | ({"guidance": draw.full(4.5)} if config["guidance_embeds"] else {})


def _sd3(config: Config, draw: Draw) -> Arguments:
    side = SIDE * config["patch_size"]
    return {
        "hidden_states": draw.normal(config["in_channels"], side, side),
        "timestep": draw.part * 1000,
        "encoder_hidden_states": draw.normal(TOKENS, config["joint_attention_dim"]),
        "pooled_projections": draw.normal(config["pooled_projection_dim"]),
    }


def _grid(axes: int) -> Tensor:
    """Positions of an example picture's tokens [SIDE * SIDE, axes], rows and columns in axes 1 and 2."""
    ids = torch.zeros(SIDE, SIDE, axes)
    ids[..., 1], ids[..., 2] = torch.arange(SIDE)[:, None], torch.arange(SIDE)[None]
    return ids.flatten(0, 1)


def _flux(config: Config, draw: Draw) -> Arguments:
    axes = len(config["axes_dims_rope"])
    made = {
        "hidden_states": draw.normal(SIDE * SIDE, config["in_channels"]),
        "timestep": draw.part,
        "encoder_hidden_states": draw.normal(TOKENS, config["joint_attention_dim"]),
        "img_ids": _grid(axes),
        "txt_ids": torch.zeros(TOKENS, axes),
    }
    if config.get("pooled_projection_dim"):
        made["pooled_projections"] = draw.normal(config["pooled_projection_dim"])
    return made | ({"guidance": draw.full(3.5)} if config.get("guidance_embeds") else {})


def _qwen(config: Config, draw: Draw) -> Arguments:
    return {
        "hidden_states": draw.normal(SIDE * SIDE, config["in_channels"]),
        "timestep": draw.part,
        "encoder_hidden_states": draw.normal(TOKENS, config["joint_attention_dim"]),
        "encoder_hidden_states_mask": draw.full(1.0, TOKENS),
        "img_shapes": [[(1, SIDE, SIDE)]],
    }


def _wan(config: Config, draw: Draw) -> Arguments:
    frames, *sides = (count * patch for count, patch in zip((FRAMES, SIDE, SIDE), config["patch_size"], strict=True))
    return {
        "hidden_states": draw.normal(config["in_channels"], frames, *sides),
        "timestep": draw.index,
        "encoder_hidden_states": draw.normal(TOKENS, config["text_dim"]),
    }


def _ltx(config: Config, draw: Draw) -> Arguments:
    return {
        "hidden_states": draw.normal(FRAMES * SIDE * SIDE, config["in_channels"]),
        "timestep": draw.part * 1000,
        "encoder_hidden_states": draw.normal(TOKENS, config["caption_channels"]),
        "encoder_attention_mask": draw.full(1.0, TOKENS),
        "num_frames": FRAMES,
        "height": SIDE,
        "width": SIDE,
    }


def _cogvideox(config: Config, draw: Draw) -> Arguments:
    side, frames = SIDE * config["patch_size"], FRAMES * (config["patch_size_t"] or 1)
    made: Arguments = {
        "hidden_states": draw.normal(frames, config["in_channels"], side, side),
        "timestep": draw.index,
        "encoder_hidden_states": draw.normal(config["max_text_seq_length"], config["text_embed_dim"]),
    }
    if config["use_rotary_positional_embeddings"]:
        angles = torch.arange(FRAMES * SIDE * SIDE)[:, None] * torch.linspace(0, 1, config["attention_head_dim"])
        made["image_rotary_emb"] = (angles.cos(), angles.sin())
    return made


def _hunyuan(config: Config, draw: Draw) -> Arguments:
    side, frames = SIDE * config["patch_size"], FRAMES * config["patch_size_t"]
    made = {
        "hidden_states": draw.normal(config["in_channels"], frames, side, side),
        "timestep": draw.part * 1000,
        "encoder_hidden_states": draw.normal(TOKENS, config["text_embed_dim"]),
        "encoder_attention_mask": draw.full(1.0, TOKENS),
        "pooled_projections": draw.normal(config["pooled_projection_dim"]),
    }
    return made | ({"guidance": draw.full(6000.0)} if config["guidance_embeds"] else {})


def _z_image(config: Config, draw: Draw) -> Arguments:
    side = SIDE * config["all_patch_size"][0]
    return {
        "x[]": draw.normal(config["in_channels"], 1, side, side),
        "t": 1.0 - draw.part,
        "cap_feats[]": draw.normal(TOKENS, config["cap_feat_dim"]),
    }


def _minimax_h3(config: Config, draw: Draw) -> Arguments:
    patch, audio = torch.tensor(config["patch_size"]).prod().item(), 3
    counts = [FRAMES * SIDE * SIDE, TOKENS, audio]  # video, text, audio: in this order in the packed sequence
    places = torch.split(torch.arange(sum(counts)), counts)
    return {
        "hidden_states": draw.normal(counts[0], config["in_channels"] * int(patch)),
        "audio_hidden_states": draw.normal(audio, config["audio_in_channels"]),
        "encoder_hidden_states": draw.normal(TOKENS, config["text_dim"]),
        "timestep": draw.part,  # the packed sequence's distinct times, of which tokens choose; here as many as rows
        "timestep_indices": torch.arange(sum(counts)) // (SIDE * SIDE) % draw.rows,
        "token_tags": torch.repeat_interleave(torch.tensor([0, 1, 2]), torch.tensor(counts)),
        "position_ids": torch.arange(sum(counts))[:, None].expand(-1, 3).contiguous(),
        "video_indices": places[0],
        "text_indices": places[1],
        "audio_indices": places[2],
    }


EXAMPLES: Mapping[str, Callable[[Config, Draw], Arguments]] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _unet,
    "PixArtTransformer2DModel": _pixart,
    "DiTTransformer2DModel": _dit,
    "SanaTransformer2DModel": _sana,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "Flux2Transformer2DModel": _flux,
    "ChromaTransformer2DModel": _flux,
    "QwenImageTransformer2DModel": _qwen,
    "WanTransformer3DModel": _wan,
    "LTXVideoTransformer3DModel": _ltx,
    "CogVideoXTransformer3DModel": _cogvideox,
    "HunyuanVideoTransformer3DModel": _hunyuan,
    "ZImageTransformer2DModel": _z_image,
    "MiniMaxH3Transformer3DModel": _minimax_h3,
}
"""Class of a denoiser to what makes the arguments of its forward; a name that ends in [] is a list with one per row."""

SHARED: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(
        ("FluxTransformer2DModel", "Flux2Transformer2DModel", "ChromaTransformer2DModel"),
        frozenset({"img_ids", "txt_ids"}),
    ),
    "MiniMaxH3Transformer3DModel": frozenset(
        {"timestep_indices", "token_tags", "position_ids"}
        | {f"{modality}_indices" for modality in ("video", "text", "audio")}
    ),
}
"""Class of a denoiser to those of its tensor arguments that have no row dimension."""
