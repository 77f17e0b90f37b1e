"""The JSON that the service answers with."""

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """JSON has no NaN and no infinity, so neither has an answer."""

    model_config = ConfigDict(allow_inf_nan=False)


class ClassProbability(Answer):
    """A class and its probability."""

    label: str
    probability: float


class Prediction(Answer):
    """An image's answer: the likeliest class, and the `top_k` likeliest."""

    image: str = Field(description="the file's name, or images[i]")
    label: str
    probability: float
    top: list[ClassProbability]


class PredictResponse(Answer):
    """One for each image, in the order of the request."""

    results: list[Prediction]
    time_ms: float = Field(description="from the whole body to the answer, in the service")


class Features(Answer):
    """What the head sees of an image."""

    image: str
    features: list[float]


class FeaturesResponse(Answer):
    """One for each image, in the order of the request."""

    results: list[Features]
    time_ms: float


class PatchEvidence(Answer):
    """What each patch adds to the logit of the class: logit = bias + the sum of all evidence."""

    image: str
    label: str
    probability: float
    logit: float
    bias: float
    evidence: list[list[float]] = Field(description="rows of the patch grid, from the top")
    seen: str = Field(description="the image as the network saw it, a PNG in a data: address")


class EvidenceResponse(Answer):
    """One for each image, in the order of the request."""

    results: list[PatchEvidence]
    time_ms: float


class ErrorResponse(Answer):
    """Why there is no answer."""

    detail: str


class ModelInfo(Answer):
    """What the service answers with."""

    name: str
    classes: list[str]
    image_size: tuple[int, int] = Field(description="height and width, pixels")
    in_channels: int
    fit: str = Field(description="what becomes of images of another shape")
    features: bool
    evidence: bool
    max_bytes: int
    max_pixels: int
    max_images: int
    runtime: str = Field(description="what computes the answers, and in which precision")
    version: str
