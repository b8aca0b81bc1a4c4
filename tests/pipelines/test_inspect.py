"""What time decides of a folder's denoiser is told without reading its weights, by example or the pipeline's call."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from jobs.profile import Defaults
from pipelines import structure
from pipelines.families import UnsupportedModel
from pipelines.load import load_components, load_denoiser, load_skeleton
from pipelines.skeletons import fake_weights
from pipelines.structure import examine_folder, first_call, grouped, structure_of
from pipelines.tiny import FAMILIES, save_tiny
from quant.temporal.discover import Discovery, examine
from quant.temporal.tables import encode

DEFAULTS = Defaults(width=32, height=32, num_inference_steps=2, guidance_scale=1.0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save_tiny(family, tmp_path_factory.mktemp("tiny") / family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_examples_and_pipelines_own_calls_tell_the_same(
    family: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, by_example = examine_folder(folders[family], DEFAULTS)
    monkeypatch.setattr(structure, "EXAMPLES", {})
    _, by_pipeline = examine_folder(folders[family], DEFAULTS)
    real = load_denoiser(load_components(folders[family]))
    by_weights = examine(real, first_call(folders[family], DEFAULTS))
    assert by_example == by_pipeline == by_weights
    assert by_example.leaves
    told = structure_of(module, by_example)
    assert told.parameters == sum(parameter.numel() for parameter in real.parameters())
    assert told.bytes == 4 * told.parameters
    assert sum(row.parameters for row in told.modules) == told.temporal_parameters
    assert told.temporal_share == pytest.approx(told.temporal_parameters / told.parameters)


def test_denoiser_weights_are_not_read(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    source = folders["stable-diffusion"]
    for name in ("model_index.json", "unet/config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not read")
    _, found = examine_folder(tmp_path, DEFAULTS)
    assert len(found.leaves) == 10


def test_tables_have_the_bytes_that_storing_takes(folders: dict[str, Path]) -> None:
    told = structure_of(*examine_folder(folders["flux"], DEFAULTS))
    assert all(row.frontier == bool(row.table) for row in told.modules)
    row = next(row for row in told.modules if row.name == "transformer_blocks.0.norm1.linear")
    assert row.table["float32"] == 4 * 6 * 32
    for storage, size in row.table.items():
        stored = encode(torch.randn(1, 6 * 32), storage, 6)
        assert sum(buffer.nbytes for buffer in stored.values()) == size
    assert told.table["bfloat16"] == sum(row.table.get("bfloat16", 0) for row in told.modules)


def test_modules_alike_are_shown_together(folders: dict[str, Path]) -> None:
    told = structure_of(*examine_folder(folders["stable-diffusion-3"], DEFAULTS))
    rows = {row.name: row for row in grouped(told.modules)}
    assert (both := rows["transformer_blocks.*.norm1.linear"]).count == 2
    assert both.table["float32"] == 2 * 4 * 6 * 32
    assert rows["transformer_blocks.1.norm1_context.linear"].count == 1, "the last block has two pieces, not six"
    assert sum(row.parameters for row in rows.values()) == told.temporal_parameters
    assert sum(row.count for row in rows.values()) == len(told.modules)


def test_an_unknown_flow_is_told() -> None:
    told = structure_of(torch.nn.Linear(2, 2), Discovery((), unknown="Linear: reads values"))
    assert (told.modules, told.temporal_parameters, told.unknown) == ((), 0, "Linear: reads values")
    assert set(told.table.values()) == {0}


def test_fake_weights_have_shapes_types_and_ties() -> None:
    with torch.device("meta"):
        module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3, dtype=torch.bfloat16))
        module[0].weight = module[1].weight
        module.register_buffer("constant", torch.ones(2))
    module.plain = torch.empty(4, device="meta")
    fake_weights(module)
    assert module[0].weight is module[1].weight
    assert module[0].weight.dtype is torch.bfloat16
    assert {str(tensor.device) for tensor in (module[1].bias, module.constant, module.plain)} == {"cpu"}
    assert type(module.plain).__name__ == "FakeTensor"


def test_wrong_folders_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="is no diffusers folder"):
        load_skeleton(tmp_path)
    source = folders["stable-diffusion"]
    (tmp_path / "unet").mkdir()
    (tmp_path / "model_index.json").write_bytes((source / "model_index.json").read_bytes())
    with pytest.raises(UnsupportedModel, match="holds no weights"):
        load_skeleton(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(UnsupportedModel, match=r"only diffusion_pytorch_model\.bin, which can run code"):
        load_skeleton(tmp_path)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"x")
    with pytest.raises(UnsupportedModel, match="holds no denoiser that we can build"):
        load_skeleton(tmp_path)
