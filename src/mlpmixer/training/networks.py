"""Which settings a recipe may have, by what its network can do."""

import dataclasses

from mlpmixer.models.architecture import Build, name_of
from mlpmixer.training.recipe import Recipe

ONLY_A_MIXER = {
    "init": ("weights", "stem", "head_bias"),
    "optim": ("layer_decay", "frozen_layers", "head_steps", "locality", "mirror"),
    "run": ("progressive", "checkpointing"),
}
"""Settings about the layers of a Mixer; another network is trained with them at their defaults."""


def with_network(recipe: Recipe, network: Build | None) -> Recipe:
    """The recipe of a run that trains what `network` builds, if there is one.

    ValueError when the run was started with another network, or when the recipe asks for what only a Mixer has.
    """
    if network is None:
        if recipe.network:
            raise ValueError(
                f"this run trains another network than a Mixer, {recipe.network}: train it from Python, "
                "mlpmixer.train(recipe, ..., network=what builds it)"
            )
        return recipe
    name, plain = name_of(network), Recipe()
    if recipe.network not in ("", name):
        raise ValueError(f"two networks: the recipe says {recipe.network}, and {name} is given")
    changed = [
        f"{owner}.{field}={getattr(getattr(recipe, owner), field)}"
        for owner, fields in ONLY_A_MIXER.items()
        for field in fields
        if getattr(getattr(recipe, owner), field) != getattr(getattr(plain, owner), field)
    ]
    changed += ["optim.name=muon"] if recipe.optim.name == "muon" else []
    if changed:
        raise ValueError(
            f"{name} is given as the network, and only a Mixer has what these are about: {', '.join(changed)}; leave "
            f"them out"
        )
    return dataclasses.replace(recipe, network=name)
