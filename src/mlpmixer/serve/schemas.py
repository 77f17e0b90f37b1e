"""JSON responses. The service sends exactly what these models serialise, and /openapi.json describes them."""

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """A JSON response. JSON has no NaN or infinity, so they are rejected."""

    model_config = ConfigDict(allow_inf_nan=False)


class ClassProbability(Answer):
    """One class and its probability."""

    label: str
    probability: float


class Prediction(Answer):
    """Prediction for one image: the most likely class and the `top_k` most likely."""

    image: str = Field(description="file name, or images[i]")
    label: str
    probability: float
    top: list[ClassProbability]


class MultiLabelPrediction(Answer):
    """Prediction for one image that may have several classes, or none."""

    image: str = Field(description="file name, or images[i]")
    labels: list[str] = Field(description="the classes at or above the threshold, likeliest first; perhaps none")
    threshold: float
    top: list[ClassProbability] = Field(description="these and the most likely others, at least `top_k`")


class PredictResponse(Answer):
    """One prediction per image, in request order."""

    results: list[Prediction]
    time_ms: float = Field(description="milliseconds from the received body to the response")


class MultiLabelResponse(Answer):
    """One prediction per image, in request order."""

    results: list[MultiLabelPrediction]
    time_ms: float = Field(description="milliseconds from the received body to the response")


class Features(Answer):
    """Features of one image: the input of the classification head."""

    image: str
    features: list[float]


class FeaturesResponse(Answer):
    """One feature vector per image, in request order."""

    results: list[Features]
    time_ms: float


class PatchEvidence(Answer):
    """Contribution of each patch to the logit of a class: logit = bias + sum of evidence."""

    image: str
    label: str
    probability: float
    logit: float
    bias: float
    evidence: list[list[float]] = Field(description="rows of the patch grid, top to bottom")
    seen: str = Field(description="the preprocessed image, a PNG as a data: URL")


class EvidenceResponse(Answer):
    """Patch evidence per image, in request order."""

    results: list[PatchEvidence]
    time_ms: float


class ErrorResponse(Answer):
    """Why the request failed."""

    detail: str


class ModelInfo(Answer):
    """The served model and the limits for requests."""

    name: str
    classes: list[str]
    image_size: list[int] = Field(description="height and width in pixels", min_length=2, max_length=2)
    in_channels: int
    threshold: float | None = Field(
        description="lowest probability at which a class counts as present, if an image may have several; else null"
    )
    fit: str = Field(description="how images of another aspect ratio are resized")
    features: bool
    evidence: bool
    max_bytes: int
    max_pixels: int = Field(description="per image")
    max_request_pixels: int = Field(description="of all images of a request together")
    max_images: int
    samples: int = Field(description="sample images that the page offers")
    runtime: str = Field(description="inference engine and precision")
    version: str
