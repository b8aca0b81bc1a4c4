"""The noise schedules that the zoo's models are trained and sampled with. Knows no model."""

from __future__ import annotations

import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from torch import Tensor

FLOW_SHIFT = 3.0
"""How far a flow's times are pushed towards noise: frames of a film tell much of each other even in much noise."""


def scheduler() -> DDIMScheduler:
    """v-prediction down to zero signal."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def flow_scheduler() -> UniPCMultistepScheduler:
    """Straight flows from noise to data, as Wan's pipelines sample them."""
    return UniPCMultistepScheduler(
        num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT
    )


class Diffusion:
    """Noised latents and their targets under `scheduler` (v-prediction, min-SNR weighting)."""

    def __init__(self, gamma: float = 5.0) -> None:
        self.kept = scheduler().alphas_cumprod
        snr = self.kept / (1 - self.kept)
        self.weight = snr.clamp(max=gamma) / (snr + 1) + 1e-3

    def draw(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents, timesteps, targets and loss weights for clean latents [batch, channels, 8, 8]."""
        times = torch.randint(0, len(self.kept), (len(latents),))
        kept = self.kept[times][:, None, None, None]
        noise = torch.randn_like(latents)
        noisy = kept.sqrt() * latents + (1 - kept).sqrt() * noise
        target = kept.sqrt() * noise - (1 - kept).sqrt() * latents
        return noisy, times, target, self.weight[times]


class Flow:
    """Noised latents and their targets under `flow_scheduler` (flow matching, Lipman et al. 2023; the shift is Esser et
    al. 2024): on the straight way from data to noise, at a time s, the guess is noise minus data."""

    def draw(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noisy latents, timesteps in 0..1000, targets and loss weights for clean latents [batch, ...]."""
        even = torch.rand(len(latents))
        share = FLOW_SHIFT * even / (1 + (FLOW_SHIFT - 1) * even)
        far = share.reshape(-1, *(1 for _ in latents.shape[1:]))
        noise = torch.randn_like(latents)
        return (1 - far) * latents + far * noise, 1000 * share, noise - latents, torch.ones_like(share)
