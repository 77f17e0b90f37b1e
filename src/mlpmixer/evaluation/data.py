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
    """The data that a run was trained on; None for a model file without its run."""
    file = classifier.path
    if file is None or not file.with_name("recipe.json").is_file():
        return None
    return from_json(Data, read_recipe_json(file.parent).get("data"), "data")
