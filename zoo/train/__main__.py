"""`python -m zoo.train [--work FOLDER] [--out FOLDER]`: trains shapes-unet, all stages, resuming whatever is there."""

from __future__ import annotations

import argparse
from pathlib import Path

from zoo.train import assemble, autoencoder, denoiser, latents, text


def main() -> None:
    """Run every stage in order; each continues from its checkpoint in the work folder."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--work", type=Path, default=Path("build/zoo"), help="checkpoints and training data")
    options.add_argument("--out", type=Path, default=Path("zoo/models/shapes-unet"), help="the finished model")
    options.add_argument("--steps", type=int, default=denoiser.Plan().steps, help="optimizer steps of the denoiser")
    choice = options.parse_args()
    vae = autoencoder.train(choice.work / "vae.pt").eval()
    encoder = text.train(choice.work / "text.pt").eval()
    data = latents.make(choice.work / "latents.pt", vae)
    stage = denoiser.train(choice.work / "unet.pt", data, encoder, denoiser.Plan(steps=choice.steps))
    assemble.write(assemble.pipeline(vae, encoder, stage.average, data.scale), choice.out)


if __name__ == "__main__":
    main()
