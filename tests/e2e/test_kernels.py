"""A service whose quantized profiles run by the cuda backend's kernels, in Triton's interpreter without a GPU."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from bench.service import service
from halftone import Client

PROMPT = "a large red circle left of a small blue square on a beige background"


@pytest.mark.timeout(600)
def test_a_shipped_artifact_is_served_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    pictures = []
    for backend in ("cuda", "openvino"):
        with service(backend=backend) as port, Client(f"http://127.0.0.1:{port}", timeout=500) as client:
            made = client.generate(
                PROMPT, model="shapes-unet", profile="tfmq-w8a8", seed=3, num_inference_steps=2, guidance_scale=1.0
            )
            assert made.used.backend == backend
            pictures.append(np.array(Image.open(io.BytesIO(made[0].data)).convert("RGB"), dtype=np.float64))
    assert pictures[0].std() > 5, "a picture, not one colour"
    error = float(np.square(pictures[0] - pictures[1]).mean())
    assert 0 < error < 2, "the same integers, and other float operations between them"
