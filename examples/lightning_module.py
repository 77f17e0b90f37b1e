"""Train with Lightning (pip install lightning) on the digits, and save the network:
python examples/lightning_module.py OUT [EPOCHS]"""

import sys

import lightning
import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import DataLoader, random_split

import mlpmixer
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.transform import Transform


class Classifier(lightning.LightningModule):
    """A network with its loss, its metric and its optimizer, as Lightning expects them."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: list[torch.Tensor], i: int) -> torch.Tensor:
        images, labels = batch
        return F.cross_entropy(self.model(images), labels)

    def test_step(self, batch: list[torch.Tensor], i: int) -> None:
        images, labels = batch
        self.log("test_top1", (self.model(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=0.05)


def main(out: str, epochs: str = "10") -> None:
    lightning.seed_everything(0)
    preprocess, digits = Preprocess(image_size=(8, 8), in_channels=1), load_digits()
    transform = Transform(preprocess)
    images = [transform(image / 16) for image in digits.images]  # floats in 0..1
    train, test = random_split(list(zip(images, digits.target, strict=True)), [0.8, 0.2])

    module = Classifier(mlpmixer.create_model("Pico/2", dropout=0.1))
    trainer = lightning.Trainer(max_epochs=int(epochs), logger=False, enable_checkpointing=False, accelerator="auto")
    trainer.fit(module, DataLoader(train, batch_size=64, shuffle=True))
    trainer.test(module, DataLoader(test, batch_size=256))

    module.model.save_pretrained(out, classes="0123456789", preprocess=preprocess)
    print(mlpmixer.load(out).predict(digits.images[0] / 16))


if __name__ == "__main__":
    main(*sys.argv[1:])
