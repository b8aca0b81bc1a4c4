"""The noise schedule that the zoo's picture models are trained and sampled with. Knows no model."""

from __future__ import annotations

from diffusers import DDIMScheduler


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
