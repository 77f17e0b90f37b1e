"""Train in a plain PyTorch loop, on a folder of images for each class, and save a model for `mlpmixer predict`:
python examples/plain_pytorch.py PHOTOS OUT [EPOCHS]. With digits-images as PHOTOS, the script first writes
scikit-learn's digits into that folder."""

import sys
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, random_split

import mlpmixer
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.transform import Transform


class Photos(Dataset):
    """PHOTOS/class/image -> (image (C,H,W), label)."""

    def __init__(self, folder: str, transform: Transform) -> None:
        self.files, self.transform = sorted(Path(folder).glob("*/*")), transform
        self.classes = sorted({path.parent.name for path in self.files})

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.files[i]), self.classes.index(self.files[i].parent.name)


def main(folder: str, out: str, epochs: str = "10") -> None:
    if folder == "digits-images" and not Path(folder).exists():
        digits = load_digits()
        for i, (image, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            Path(folder, str(label)).mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255 / 16).round().astype("uint8")).save(f"{folder}/{label}/{i:04}.png")
    torch.manual_seed(0)
    preprocess = Preprocess(image_size=(8, 8), in_channels=1)  # of "Pico/2"; of "S/16": (224, 224), 3
    photos = Photos(folder, Transform(preprocess))
    train, test = random_split(photos, [0.8, 0.2])
    model = mlpmixer.create_model("Pico/2", num_classes=len(photos.classes), dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    for _ in range(int(epochs)):
        model.train()
        for images, labels in DataLoader(train, batch_size=64, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
    model.eval()
    with torch.inference_mode():
        right = sum((model(x).argmax(1) == y).sum().item() for x, y in DataLoader(test, batch_size=256))
    print(f"test top-1 {right / len(test):.3f} of {len(test)} images")
    model.save_pretrained(out, classes=photos.classes, preprocess=preprocess)
    print(mlpmixer.load(out).predict(photos.files[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
