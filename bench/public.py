"""Models of public sizes with random weights, as folders that the product serves: what speed is measured on.

The denoiser is at its full size, by the config that `pipelines.sizes` has; text encoder and autoencoder are small, with
the widths and the eightfold scale that the denoiser's pipeline needs. Pictures are noise. Schedulers predict velocity:
latents then keep their size whatever a random denoiser answers. Must not know what is measured.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
import transformers
from torch import nn

from pipelines.examples import example_call
from pipelines.sizes import PUBLIC
from pipelines.tiny import clip_tokenizer, t5_tokenizer
from quant import call_module

SCALE_OF_VAE: Final = 8
SIDE: Final = 32
SMALL_SIDE: Final = 8
CLIP_TOKENS: Final = 77
"""Of a prompt, padded, as Stable Diffusion's text encoder has it."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model to be written.

    Attributes:
        denoiser: a name in `pipelines.sizes.PUBLIC`.
        pipeline: makes the pipeline around a denoiser.
        shrink: config entries that make it small, for tests and for growing one thing at a time.
    """

    denoiser: str
    pipeline: Callable[[nn.Module], Any]
    shrink: Mapping[str, Any] = field(default_factory=dict)


def write_model(name: str, folder: Path, *, seed: int = 0) -> Path:
    """Writes a model (a key of `MODELS`) as a diffusers folder with a card, unless it is there; whole or not at all.

    Raises:
        KeyError: no such model; the message lists the known ones.
    """
    if name not in MODELS:
        raise KeyError(f"no model {name!r}; there are {', '.join(MODELS)}")
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            pipeline = MODELS[name].pipeline(random_denoiser(MODELS[name]))
        pipeline.save_pretrained(partial, safe_serialization=True)
        (partial / "halftone.json").write_text(json.dumps(_card(name)), encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def random_denoiser(model: Model) -> nn.Module:
    """Its denoiser with PyTorch's own random weights, the last layer scaled so that outputs have deviation 1.

    What starts at zero (gates, last layers of some) gets small random values, or the model would pass nothing through.
    """
    public = PUBLIC[model.denoiser]
    module: nn.Module = getattr(diffusers, public.kind)(**{**public.config, **model.shrink})
    for parameter in module.parameters():
        if not parameter.any() and parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.02)
    module.eval().requires_grad_(False)
    deviation = call_module(module, example_call(module, rows=1)).std()
    last = module.get_submodule(next(one for one in ("conv_out", "proj_out") if hasattr(module, one)))
    for parameter in last.parameters():
        parameter.div_(deviation)
    return module


def default_side(name: str) -> int:
    """Of a model's latents: what requests default to, and artifacts are calibrated at."""
    return SMALL_SIDE if name.startswith("small-") else SIDE


def _card(name: str) -> dict[str, Any]:
    side = SCALE_OF_VAE * default_side(name)
    defaults = {"width": side, "height": side, "num_inference_steps": 25, "guidance_scale": 4.5}
    limits = {"min_side": SCALE_OF_VAE * 2, "max_side": 2048, "multiple_of": 16, "max_pixels": 1 << 22}
    return {"id": name, "defaults": defaults, "limits": limits}


def _vae() -> Any:
    blocks = 4
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=(8, 16, 16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
    ).eval()


def _scheduler(betas: str) -> Any:
    return diffusers.DDIMScheduler(
        prediction_type="v_prediction", clip_sample=False, beta_schedule=betas, steps_offset=1
    )


def _stable_diffusion(unet: Any) -> Any:
    tokenizer, width = clip_tokenizer(), unet.config.cross_attention_dim
    tokenizer.model_max_length = CLIP_TOKENS
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=width // 32,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return diffusers.StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=transformers.CLIPTextModel(config).eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=_scheduler("scaled_linear"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _pixart(transformer: Any) -> Any:
    tokenizer = t5_tokenizer()
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=transformer.config.caption_channels,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return diffusers.PixArtSigmaPipeline(
        vae=_vae(),
        text_encoder=transformers.T5EncoderModel(config).eval(),
        tokenizer=tokenizer,
        transformer=transformer,
        scheduler=_scheduler("linear"),
    )


SMALL_UNET: Final = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
}
SMALL_PIXART: Final = {
    "sample_size": 16,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "caption_channels": 32,
    "cross_attention_dim": 64,
}


def _layers(count: int) -> Model:
    """PixArt at its own width with fewer blocks."""
    return Model("pixart-sigma", _pixart, {"num_layers": count})


MODELS: Final[Mapping[str, Model]] = {
    "sd15": Model("stable-diffusion-1.5", _stable_diffusion),
    "pixart": Model("pixart-sigma", _pixart),
    "small-unet": Model("stable-diffusion-1.5", _stable_diffusion, SMALL_UNET),
    "small-pixart": Model("pixart-sigma", _pixart, SMALL_PIXART),
    **{f"pixart-{count}": _layers(count) for count in (2, 4, 8)},
    **{f"small-pixart-{n}": Model("pixart-sigma", _pixart, {**SMALL_PIXART, "num_layers": n}) for n in (1, 4)},
}
"""Name to model. `small-` ones take milliseconds: tests and `--quick` run on them."""
