"""The plain way to fine-tune, as scripts in this field do it today. The baseline of bench_finetune.

Pillow in a DataLoader, torchvision's classic augmentation, an eager float32 network, `loss.item()` after every batch.
It uses nothing of spatialfeat. In one point it does better than the scripts it stands for: frozen blocks are kept in
evaluation mode, so that their BatchNorm statistics stay, and its learning curve can be held against spatialfeat's.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.models import resnet50

NORMALIZE = (
    transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
)


def train_transform(size: int) -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(10),
            transforms.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2),
            *NORMALIZE,
        ]
    )


def val_transform(size: int) -> transforms.Compose:
    return transforms.Compose([transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size), *NORMALIZE])


class Frames(Dataset):
    def __init__(self, csv_path: Path, img_dir: Path, transform: Callable[[Image.Image], torch.Tensor]):
        with csv_path.open(newline="") as file:
            self.rows = [(row["id"], int(row["label"])) for row in csv.DictReader(file)]
        self.img_dir, self.transform = img_dir, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        frame_id, label = self.rows[index]
        image = Image.open(self.img_dir / f"{frame_id}.png").convert("RGB")
        return self.transform(image), label


def run_epoch(
    model: nn.Module, loader: DataLoader, device: str, optimizer: torch.optim.Optimizer | None
) -> tuple[float, float]:
    """Train, or validate when there is no optimizer. Returns mean loss and accuracy (0..1) over all frames."""
    criterion = nn.CrossEntropyLoss()
    loss_sum, correct, frames = 0.0, 0, 0
    for images, labels in loader:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.set_grad_enabled(optimizer is not None):
            logits = model(images)
            loss = criterion(logits, labels)
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss_sum += loss.item() * len(labels)
        correct += (logits.argmax(1) == labels).sum().item()
        frames += len(labels)
    return loss_sum / frames, correct / frames


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-csv", type=Path, required=True)
    parser.add_argument("--val-csv", type=Path, required=True)
    parser.add_argument("--img-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--freeze-until", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args(arguments)

    torch.manual_seed(options.seed)
    state = torch.load(options.weights, map_location="cpu", weights_only=True)
    model = resnet50(num_classes=len(state["fc.bias"]))
    model.load_state_dict(state)
    model.to(options.device)
    frozen = list(model.children())[: options.freeze_until]
    for child in frozen:
        child.requires_grad_(False)
    loading = {
        "batch_size": options.batch_size,
        "num_workers": options.workers,
        "pin_memory": options.device != "cpu",
    }
    train_frames = Frames(options.train_csv, options.img_dir, train_transform(options.image_size))
    val_frames = Frames(options.val_csv, options.img_dir, val_transform(options.image_size))
    train_loader, val_loader = DataLoader(train_frames, shuffle=True, **loading), DataLoader(val_frames, **loading)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=options.lr)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.5, patience=3)

    options.out.mkdir(parents=True, exist_ok=True)
    history = ["epoch,train_loss,train_acc,val_loss,val_acc,seconds"]
    best = -1.0
    for epoch in range(1, options.epochs + 1):
        start = time.perf_counter()
        model.train()
        for child in frozen:
            child.eval()
        train = run_epoch(model, train_loader, options.device, optimizer)
        model.eval()
        val = run_epoch(model, val_loader, options.device, None)
        scheduler.step(val[1])
        seconds = time.perf_counter() - start
        history.append(",".join(map(str, (epoch, *train, *val, seconds))))
        if val[1] > best:
            best = val[1]
            torch.save(model.state_dict(), options.out / "best.pth")
    (options.out / "history.csv").write_text("\n".join(history) + "\n")


if __name__ == "__main__":
    main()
