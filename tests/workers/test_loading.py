"""What a worker loads models as."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch

from tests.workers.compared import settings_with_profiles
from tests.workers.kit import TINY, Kit, request
from workers.loading import dtype_on
from workers.settings import WorkerSettings


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.float32), ("cuda:0", torch.bfloat16)])
def test_half_the_bits_are_for_gpus(device: str, dtype: torch.dtype, tmp_path: Path) -> None:
    assert dtype_on(device, WorkerSettings(data=tmp_path, gpu_dtype="bfloat16")) == dtype
    assert dtype_on(device, WorkerSettings(data=tmp_path)) == torch.float32


def test_a_worker_runs_profiles_by_the_backend_that_it_is_told(tmp_path: Path) -> None:
    found = {}
    for backend in (None, "reference"):
        with closing(Kit(settings_with_profiles(tmp_path / str(backend), backend=backend))) as kit:
            found[backend] = kit.run(request(TINY, profile="w8a8")).used.backend
    assert found == {None: "openvino", "reference": "reference"}
