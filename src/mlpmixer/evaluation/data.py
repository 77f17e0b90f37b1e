"""Which data a model is measured on: what is asked for, or what its run was trained on."""

import dataclasses

from mlpmixer.config import from_json
from mlpmixer.data.config import Data
from mlpmixer.inference.classifier import Classifier
from mlpmixer.weights.run_folder import read_recipe_json


def resolve_data(classifier: Classifier, data: Data | str | None, data_dir: str = "") -> Data:
    """The Data that is asked for: by itself, by its name or path, or as None, the data that the run was trained on.

    A run's own data is cut as in training, so that no training image lands in its test split. data_dir: where the files
    of a named data set are, when they are elsewhere now. ValueError when None is asked for and the file does not say.
    """
    if not isinstance(data, Data):
        own = own_data(classifier)
        if own is not None and data in (None, own.name):
            data = own
        elif data is None:
            raise ValueError(
                "which images? This model file does not say what data it was trained on: name a data set or a folder"
            )
        else:
            data = Data(name=data)
    return dataclasses.replace(data, data_dir=data_dir) if data_dir else data


def own_data(classifier: Classifier) -> Data | None:
    """The data that a model was trained on; None where neither its file nor the recipe beside it says so."""
    if classifier.meta is not None and classifier.meta.data is not None:
        return classifier.meta.data
    recipe = classifier.path and classifier.path.with_name("recipe.json")
    if recipe is None or not recipe.is_file():
        return None
    return from_json(Data, read_recipe_json(recipe.parent).get("data"), "data")
