"""`python -m zoo.train MODEL [--work FOLDER] [--out FOLDER]`: trains a built-in model; resumes."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from zoo.train import assemble, autoencoder, denoiser, latents, text
from zoo.train.dit import ShapesDiT
from zoo.train.unet import ShapesUNet
from zoo.train.video import ShapesVideo

KINDS: dict[str, type[denoiser.Kind]] = {kind.name: kind for kind in (ShapesUNet, ShapesDiT, ShapesVideo)}


def main() -> None:
    """Run every stage in order; each continues from its checkpoint in the work folder. Models of a world share its
    autoencoder."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("model", choices=KINDS)
    options.add_argument("--work", type=Path, default=Path("build/zoo"), help="checkpoints and training data")
    options.add_argument("--out", type=Path, help="the finished model; by default zoo/models/MODEL")
    options.add_argument("--steps", type=int, help="optimizer steps of the denoiser; by default the model's")
    choice = options.parse_args()
    kind = KINDS[choice.model]()
    work, name = choice.work, Path(kind.checkpoint).stem
    coder = kind.world.autoencoder
    vae = autoencoder.train(work / coder.checkpoint, coder).eval()
    encoder = text.train(work / f"text-{name}.pt", kind.language, kind.world).eval()
    data = latents.make(work / f"latents-{name}.pt", vae, kind.language, kind.world, count=kind.examples)
    plan = replace(kind.plan, steps=choice.steps or kind.plan.steps)
    stage = denoiser.train(work / kind.checkpoint, kind, data, encoder, plan)
    pipe = assemble.pipeline(kind, vae, encoder, stage.average, data)
    assemble.write(kind, pipe, choice.out or Path("zoo/models") / kind.name)


if __name__ == "__main__":
    main()
