"""The plain way to extract features, as scripts in this field do it today. The baseline of bench_extract.

Pillow in a DataLoader, torchvision's classic transforms, an eager float32 network with a hook on its last layer, and
one `.npy` file per frame. It uses nothing of spatialfeat.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import get_model
from torchvision.transforms import v2

NORMALIZE = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
TRANSFORM = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), NORMALIZE])
# Resizing a uint8 tensor instead of a Pillow image: one value in a thousand comes out one grey level apart.
TENSOR_TRANSFORM = v2.Compose(
    [
        v2.PILToTensor(),
        v2.Resize(256, antialias=True),
        v2.CenterCrop(224),
        v2.ToDtype(torch.float32, scale=True),
        NORMALIZE,
    ]
)


class Frames(Dataset):
    def __init__(self, csv_paths: list[Path], img_dir: Path, transform: Callable[[Image.Image], torch.Tensor]):
        self.ids = [row["id"] for path in csv_paths for row in csv.DictReader(path.open(newline=""))]
        self.img_dir, self.transform = img_dir, transform

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        image = Image.open(self.img_dir / f"{self.ids[index]}.png").convert("RGB")
        return self.transform(image), self.ids[index]


def extract(
    csv_paths: list[Path],
    img_dir: Path,
    weights: Path,
    out_dir: Path,
    *,
    batch_size: int,
    workers: int,
    device: str,
    reference: bool = False,
    backbone: str = "resnet50",
) -> None:
    """Write the features of every frame to `out_dir/{id}.npy`, float32.

    reference: resize tensors and, on a GPU, round nothing to TF32. Not timed; (b) is held against its features.
    """
    if reference:
        torch.backends.cudnn.allow_tf32 = False
    dataset = Frames(csv_paths, img_dir, TENSOR_TRANSFORM if reference else TRANSFORM)
    state = torch.load(weights, map_location="cpu", weights_only=True)
    model = get_model(backbone, num_classes=len([*state.values()][-1]))  # Last comes the classifier's bias.
    model.load_state_dict(state)
    model.to(device).eval()
    tapped: list[torch.Tensor] = []
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    last.register_forward_pre_hook(lambda module, inputs: tapped.append(inputs[0]))

    out_dir.mkdir(parents=True, exist_ok=True)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, pin_memory=device != "cpu")
    with torch.no_grad():
        for images, ids in loader:
            model(images.to(device, non_blocking=True))
            for frame_id, feature in zip(ids, tapped.pop().cpu().numpy(), strict=True):
                np.save(out_dir / f"{frame_id}.npy", feature)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", dest="csv_paths", type=Path, action="append", required=True)
    parser.add_argument("--img-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", dest="out_dir", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backbone", default="resnet50", help="a network of torchvision")
    parser.add_argument("--reference", action="store_true", help="for comparison: tensor resize, no TF32")
    extract(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
