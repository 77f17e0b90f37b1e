"""Train on the digits, load the model and evaluate it: python examples/train_and_use.py [RUN [EPOCHS]]"""

import dataclasses
import sys

import mlpmixer
from mlpmixer.training.recipes import digits


def main(run: str = "runs/example", epochs: str = "20") -> None:
    recipe = digits()
    recipe = dataclasses.replace(recipe, run=dataclasses.replace(recipe.run, epochs=float(epochs)))
    result = mlpmixer.train(recipe, out=run)
    model = mlpmixer.load(result.path)
    metrics = mlpmixer.evaluate(model, "digits")
    print(f"test top-1 {metrics.top1:.3f} of {metrics.n} images")


if __name__ == "__main__":
    main(*sys.argv[1:])
