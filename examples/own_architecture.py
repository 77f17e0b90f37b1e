"""Build a Mixer of your own and print its shapes: python examples/own_architecture.py"""

import torch

import mlpmixer


def main() -> None:
    model = mlpmixer.create_model("S/16", num_classes=10, image_size=(64, 128), hidden_dim=192)
    for name, value in model.eval().intermediates(torch.zeros(1, 3, 64, 128)).items():
        print(f"{name:12} {tuple(value.shape)}")
    print(f"{sum(layer.params for layer in model.cfg.layers()):,} parameters")


if __name__ == "__main__":
    main()
