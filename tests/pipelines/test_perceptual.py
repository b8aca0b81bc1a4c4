"""LPIPS and CLIP score by weights in folders, against the published forms written out with torch's own modules."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from jobs.errors import BadSettings
from pipelines.perceptual import ClipScore, Lpips
from workers.judges import Judges

WIDTHS = (64, 192, 384, 256, 256)
NAMES = ("slice1.0", "slice2.3", "slice3.6", "slice4.8", "slice5.10")


def alexnet() -> nn.Sequential:
    """AlexNet's features in their published order."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Sequential, list[Tensor]]:
    torch.manual_seed(5)
    net, shares = alexnet(), [torch.rand(1, width, 1, 1) for width in WIDTHS]
    folder = tmp_path_factory.mktemp("lpips")
    state = {f"net.{name}.{kind}": tensor for name, layer in zip(NAMES, (0, 3, 6, 8, 10), strict=True)
             for kind, tensor in net[layer].state_dict().items()}  # fmt: skip
    state |= {f"lin{place}.model.1.weight": share for place, share in enumerate(shares)}
    save_file(state, folder / "alex.safetensors")
    return folder, net, shares


def by_hand(x: Tensor, y: Tensor, net: nn.Sequential, shares: list[Tensor]) -> float:
    total = 0.0
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    values = [(2 * picture - 1 - shift[:, None, None]) / scale[:, None, None] for picture in (x, y)]
    place = 0
    with torch.no_grad():
        for layer in net:
            values = [layer(one[None])[0] for one in values]
            if isinstance(layer, nn.ReLU):
                unit = [one / one.norm(dim=0, keepdim=True).clamp(min=1e-10) for one in values]
                total += float((shares[place][0] * (unit[0] - unit[1]) ** 2).sum(dim=0).mean())
                place += 1
    return total


def test_lpips_is_the_published_distance(lpips: tuple[Path, nn.Sequential, list[Tensor]]) -> None:
    folder, net, shares = lpips
    x, y = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    found = Lpips(folder).distance(x, y)
    assert found == pytest.approx(by_hand(x, y, net, shares), rel=1e-4) and found > 0
    assert Lpips(folder).distance(x, x) == 0
    small = [functional.interpolate(one[None], 64, mode="area")[0] for one in (x, y)]
    assert Lpips(folder).distance(*small) > 0, "other sizes are resized"


def test_clip_score_is_that_of_the_model_itself(tmp_path: Path) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, **{f"{letter}</w>": 2 + i for i, letter in enumerate("abcd")}}
    (tmp_path / "vocab.json").write_text(json.dumps(words | {letter: 10 + i for i, letter in enumerate("abcd")}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    tokenizer.save_pretrained(tmp_path)
    torch.manual_seed(0)
    part = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=part | {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 1},
        vision_config=part | {"image_size": 32, "patch_size": 8},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    picture = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(2))
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    pixels = ((picture - mean[:, None, None]) / deviation[:, None, None])[None]
    tokens = tokenizer(["a b"], return_tensors="pt")
    with torch.no_grad():
        outputs = model(pixel_values=pixels, **tokens)
    wanted = float(outputs.logits_per_image[0, 0] / model.logit_scale.detach().exp())
    assert ClipScore(tmp_path).score("a b", picture) == pytest.approx(max(0.0, 100 * wanted), abs=1e-3)
    wide = torch.rand(3, 48, 96, generator=torch.Generator().manual_seed(3))
    assert 0 <= ClipScore(tmp_path).score("a b c d a b c d a b c d", wide) <= 100, "longer texts are cut, sizes fitted"
    judge, inside, most = ClipScore(tmp_path), 0, 0
    read = judge._tokenizer

    def slowly(*texts: Any, **options: Any) -> Any:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        return read(*texts, **options)

    judge._tokenizer = slowly
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(judge.score, ["a b"] * 4, [picture] * 4))) == 1
    assert most == 1, "tokenizers are not thread-safe"


def test_what_is_not_configured_is_told(tmp_path: Path) -> None:
    missing: dict[str, str] = {}
    assert Judges().lpips(missing) is None and Judges().clip(missing) is None
    assert "HALFTONE_LPIPS_DIR" in missing["lpips"] and "HALFTONE_CLIP_DIR" in missing["clip_score"]
    for judge in (Judges(lpips_dir=tmp_path).lpips, Judges(clip_dir=tmp_path).clip):
        with pytest.raises(BadSettings, match="does not hold the weights"):
            judge({})
