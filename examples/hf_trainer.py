"""Train with Hugging Face's Trainer (pip install transformers accelerate) on the digits, and save the network:
python examples/hf_trainer.py OUT [EPOCHS]"""

import sys

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F
from torch.utils.data import random_split
from transformers import EvalPrediction, Trainer, TrainingArguments

import mlpmixer
from mlpmixer.data.preprocess import Preprocess
from mlpmixer.inference.transform import Transform


class ForTrainer(torch.nn.Module):
    """A network with the Trainer's interface: pixel_values and labels in, loss and logits out."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.model(pixel_values)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def top1(answers: EvalPrediction) -> dict[str, float]:
    return {"top1": float((answers.predictions.argmax(1) == answers.label_ids).mean())}


def main(out: str, epochs: str = "10") -> None:
    torch.manual_seed(0)
    preprocess, digits = Preprocess(image_size=(8, 8), in_channels=1), load_digits()
    transform = Transform(preprocess)
    images = [transform(image / 16) for image in digits.images]  # floats in 0..1
    rows = [{"pixel_values": x, "labels": int(y)} for x, y in zip(images, digits.target, strict=True)]
    train, test = random_split(rows, [0.8, 0.2])

    model = mlpmixer.create_model("Pico/2", dropout=0.1)
    args = TrainingArguments(
        output_dir=f"{out}-trainer", num_train_epochs=float(epochs), per_device_train_batch_size=64, learning_rate=3e-3,
        weight_decay=0.05, lr_scheduler_type="cosine", save_strategy="no", report_to="none",
    )  # fmt: skip
    trainer = Trainer(ForTrainer(model), args, train_dataset=train, eval_dataset=test, compute_metrics=top1)
    trainer.train()
    print(f"test top-1 {trainer.evaluate()['eval_top1']:.3f} of {len(test)} images")

    model.save_pretrained(out, classes="0123456789", preprocess=preprocess)
    print(mlpmixer.load(out).predict(digits.images[0] / 16))


if __name__ == "__main__":
    main(*sys.argv[1:])
