"""LPIPS and CLIP score by weights that the operator provides. Must not know where they come from, or fetch any.

LPIPS: Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (CVPR 2018), with AlexNet,
on pictures resized to 256x256 as other engines' quality benchmarks do. CLIP score: Hessel et al. (EMNLP 2021), without
its factor 2.5: 100 times the cosine of text and picture, not under 0.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from quant.making import MAKING

SIDE = 256

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_LAYERS = (
    *(("slice1.0", 4, 2, False), ("slice2.3", 1, 2, True), ("slice3.6", 1, 1, True)),
    *(("slice4.8", 1, 1, False), ("slice5.10", 1, 1, False)),
)
"""AlexNet's convolutions: name, stride, padding, and whether the input is pooled first."""

_CLIP_MEAN, _CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Lpips:
    """LPIPS from a folder with one safetensors file: the state of `lpips.LPIPS(net="alex")`, names as there."""

    def __init__(self, folder: Path) -> None:
        """Raises:
        ValueError: there is not exactly one safetensors file.
        KeyError: it lacks a weight.
        """
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise ValueError(f"expected one .safetensors file, found {len(files)}")
        state = load_file(files[0])
        self._convolutions = [
            (state[f"net.{name}.weight"], state[f"net.{name}.bias"], stride, padding, pooled)
            for name, stride, padding, pooled in _LAYERS
        ]
        self._weights = [state[f"lin{place}.model.1.weight"] for place in range(len(_LAYERS))]

    @torch.inference_mode()
    def distance(self, picture: Tensor, truth: Tensor) -> float:
        """LPIPS of two pictures [3, H, W], values 0..1; 0 for equal ones."""
        both = torch.stack([picture, truth]).float()
        both = functional.interpolate(both, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
        shift, scale = (torch.tensor(values)[:, None, None] for values in (_SHIFT, _SCALE))
        values = (2 * both - 1 - shift) / scale
        total = 0.0
        for (weight, bias, stride, padding, pooled), share in zip(self._convolutions, self._weights, strict=True):
            if pooled:
                values = functional.max_pool2d(values, 3, 2)
            values = functional.conv2d(values, weight, bias, stride, padding).relu()
            unit = values / (values.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
            total += float(functional.conv2d((unit[:1] - unit[1:]).square(), share).mean())
        return total


class ClipScore:
    """CLIP score from a folder in transformers' layout: a CLIPModel in safetensors and its tokenizer."""

    def __init__(self, folder: Path) -> None:
        """Raises:
        OSError: the folder holds no such model.
        """
        from transformers import AutoTokenizer, CLIPModel

        with MAKING:
            self._model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        self._reading = threading.Lock()  # tokenizers are not thread-safe
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    @torch.inference_mode()
    def score(self, prompt: str, picture: Tensor) -> float:
        """100 times the cosine of a prompt and a picture [3, H, W], values 0..1; not under 0."""
        config = self._model.config
        most = config.text_config.max_position_embeddings
        with self._reading:
            tokens = self._tokenizer([prompt], truncation=True, max_length=most, return_tensors="pt")
        pixels = _for_clip(picture, config.vision_config.image_size)
        outputs = self._model(pixel_values=pixels, input_ids=tokens.input_ids, attention_mask=tokens.attention_mask)
        return max(0.0, 100 * float(functional.cosine_similarity(outputs.text_embeds, outputs.image_embeds)[0]))


def _for_clip(picture: Tensor, side: int) -> Tensor:
    """[1, 3, side, side]: the shorter side resized, the middle cut out, normalized as CLIP was trained."""
    height, width = picture.shape[1:]
    ratio = side / min(height, width)
    size = (max(side, round(height * ratio)), max(side, round(width * ratio)))
    resized = functional.interpolate(picture[None].float(), size, mode="bicubic", antialias=True, align_corners=False)
    top, left = (size[0] - side) // 2, (size[1] - side) // 2
    middle = resized[:, :, top : top + side, left : left + side].clamp(0, 1)
    mean, deviation = (torch.tensor(values)[:, None, None] for values in (_CLIP_MEAN, _CLIP_DEVIATION))
    return (middle - mean) / deviation
