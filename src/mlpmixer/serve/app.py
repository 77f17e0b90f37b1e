"""Endpoints of the service. `make_app` builds an ASGI app around a Classifier, for a server such as uvicorn."""

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from io import BytesIO
from typing import Annotated, Any

import numpy as np
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, PlainTextResponse, Response
from fastapi.security import HTTPBearer
from PIL import Image
from pydantic import WithJsonSchema
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.routing import Route

from mlpmixer import __version__
from mlpmixer.data.images import Pixels
from mlpmixer.inference.classifier import Classifier
from mlpmixer.inference.exported_classifier import Exported
from mlpmixer.inference.output import to_record
from mlpmixer.serve import page
from mlpmixer.serve.batcher import Batcher, Compute, QueueClosed, QueueFull
from mlpmixer.serve.evidence import evidence_of
from mlpmixer.serve.limits import FILE, FORM, JSON, RETRY, LimitsMiddleware, route_path
from mlpmixer.serve.metrics import Metrics, MetricsMiddleware
from mlpmixer.serve.schemas import (
    Answer,
    ErrorResponse,
    EvidenceResponse,
    Features,
    FeaturesResponse,
    ModelInfo,
    MultiLabelResponse,
    PatchEvidence,
    PredictResponse,
)
from mlpmixer.serve.settings import Settings
from mlpmixer.serve.turns import Turn, Turns
from mlpmixer.serve.uploads import Upload, check_headers, decode_upload, parse_uploads

IMAGE_TYPES = [f"image/{name}" for name in ("jpeg", "png", "webp", "gif", "bmp", "tiff", "avif")]
STUCK_S = 60.0  # a batch takes seconds at most; an engine that takes longer is not ready


def _plain(status: int, text: str) -> dict[int | str, dict[str, Any]]:
    """An error of any route. (`model` would be text where the response class is.)"""
    schema = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorResponse"}}}
    return {status: {"description": text, "content": schema}}


ALWAYS = _plain(400, "Malformed HTTP, or a header twice that may come once.") | _plain(
    421, "A host that the service does not answer for."
)
NO_TOKEN = _plain(401, "The token is missing or wrong.")
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text}
    for status, text in {
        403: "Sent by a page of another site.",
        408: "The body took too long to arrive.",
        413: "Too many bytes, pixels or images.",
        415: "Neither an image of a format that the service reads nor a form nor JSON.",
        422: "A damaged image, malformed body or invalid parameter.",
        429: "Too many concurrent requests from this client; see Retry-After.",
        500: "Internal error; see the log of the service.",
        503: "Overloaded or shutting down; see Retry-After.",
    }.items()
}
NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "Not ready: the reason.", "content": {"text/plain": {"schema": {"type": "string"}}}}
}
FILE_SCHEMA = {"type": "string", "format": "binary"}
BASE64_SCHEMA = {
    "type": "string",
    "format": "byte",
    "description": "an image file in base64 (either alphabet, with or without line breaks), or as a data: URL",
}


def _only(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}


def _several(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": schema}  # the limit is a setting, and answered with 413


BODY = {
    "requestBody": {
        "required": True,
        "description": "One image file, several files in a form, or one or several in JSON.",
        "content": {kind: {"schema": FILE_SCHEMA} for kind in (*IMAGE_TYPES, FILE)}
        | {
            FORM: {"schema": _only("file", _several(FILE_SCHEMA))},
            JSON: {"schema": {"oneOf": [_only("image", BASE64_SCHEMA), _only("images", _several(BASE64_SCHEMA))]}},
        },
    }
}


class Service:
    """A Classifier with its queue, decoder threads and metrics."""

    batcher: Batcher
    """Set while the event loop runs."""
    leaving = False
    """Requests are still accepted, but /ready returns 503."""
    draining = False
    """New requests are refused; accepted ones are completed."""

    def __init__(self, classifier: Classifier, settings: Settings, name: str, samples: Sequence[bytes]) -> None:
        self.classifier, self.settings, self.name, self.samples = classifier, settings, name, samples
        self.metrics = Metrics()
        self.evidence = evidence_of(classifier)
        self.turns = Turns(settings.decoders)
        self.compute: dict[str, Compute] = {"predict": classifier.probabilities}
        self._warm_up()

    def _warm_up(self) -> None:
        """Runs a blank image through the model: finds out what it can do, and raises ValueError for a broken one."""
        preprocess, evidence = self.classifier.preprocess, self.evidence
        if preprocess.in_channels not in (1, 3):
            raise ValueError(
                f"cannot serve this model: it takes {preprocess.in_channels} channels, and image files have 1 or 3"
            )
        nothing = np.zeros((1, *preprocess.image_size, preprocess.in_channels), preprocess.dtype)
        self.classifier.probabilities(nothing)
        try:
            self.classifier.features(nothing)
            self.compute["features"] = self.classifier.features
        except ValueError:  # another network than a Mixer
            pass
        if evidence:
            self.compute["evidence"] = lambda pixels: list(
                zip(self.classifier.probabilities(pixels), evidence.of(pixels), strict=True)
            )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        settings = self.settings
        self.batcher = Batcher(
            self.compute,
            streams=self.classifier.runtime.streams if self.classifier.runtime else 1,
            batch_s=settings.batch_s,
            min_batch=(isinstance(self.classifier, Exported) and self.classifier.export.batch) or 1,
            max_batch=settings.max_batch,
            capacity=settings.queue,
            observe=self.metrics.batch,
        )
        try:
            yield
        finally:
            self.draining = True
            await asyncio.to_thread(self.batcher.close, settings.answer_s)
            self.turns.pool.shutdown(wait=False, cancel_futures=True)

    async def handle(self, kind: str, request: Request) -> list[tuple[Upload, Pixels, Any]]:
        """Uploads, preprocessed pixels and model outputs, one tuple per image. Raises HTTPException."""
        settings = self.settings
        if kind not in self.compute:
            raise HTTPException(404, f"this model does not provide {kind}")
        try:
            async with asyncio.timeout(settings.answer_s):
                body = await request.body()
                turn = Turn(self.turns)
                uploads, costs = await turn.run(len(body), _read, request.headers["content-type"], body, settings)
                with self.batcher.admit(len(uploads)), self.metrics.track_images(len(uploads)):
                    pixels = [
                        await turn.run(cost, decode_upload, upload, self.classifier)
                        for upload, cost in zip(uploads, costs, strict=True)
                    ]
                    return list(zip(uploads, pixels, await self.batcher.ask(kind, pixels), strict=True))
        except QueueFull:
            raise HTTPException(503, "too many images in the queue", RETRY) from None
        except QueueClosed:
            raise HTTPException(503, "the service is shutting down", RETRY) from None
        except TimeoutError:
            raise HTTPException(503, f"no response within {settings.answer_s:g} s", RETRY) from None

    def unready_reason(self) -> str:
        """Why the service is not ready; empty when it is."""
        if self.leaving or self.draining:
            return "shutting down"
        busy_since = self.batcher.busy_since
        if not self.batcher.alive or (busy_since is not None and time.monotonic() - busy_since > STUCK_S):
            return "the engine is stuck"
        return ""


def _read(content_type: str, body: bytes, settings: Settings) -> tuple[list[Upload], list[int]]:
    """The images of a body, and what decoding each costs."""
    uploads = parse_uploads(content_type, body, settings)
    return uploads, check_headers(uploads, settings)


def make_app(
    classifier: Classifier,
    settings: Settings | None = None,
    *,
    token: str = "",
    name: str = "",
    hosts: Collection[str] | None = None,
    samples: Sequence[bytes] = (),
) -> FastAPI:
    """The service as an ASGI app. `app.state.service` is the Service.

    token: required as `Authorization: Bearer TOKEN`; "": no token. name: display name of the model.
    hosts: names that requests may be for (their Host header, without the port); None: any.
    samples: PNG files that the page offers to try, see `page.read_samples`.

    ValueError for a model that cannot be served: no head, neither 1 nor 3 channels, broken weights.
    """
    settings = settings or Settings()
    service = Service(classifier, settings, name, samples)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title=f"mlpmixer: {name}" if name else "mlpmixer",
        version=__version__,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        servers=[{"url": "."}],  # where the schema is, whatever prefix a proxy puts before it
    )
    app.state.service = service
    bearer = HTTPBearer(auto_error=False, description="The token of the service (--token-file).")
    private: dict[str, Any] = {
        "responses": ALWAYS | (NO_TOKEN if token else {}),
        "dependencies": [Depends(bearer)] if token else [],
    }  # of routes that need the token, where there is one
    _add_pages(app, service, private)
    _add_inference(app, service, private)
    routes: dict[str, set[str]] = {}
    for route in app.routes:
        if isinstance(route, Route):
            routes.setdefault(route.path, set()).update(route.methods or ())

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, e: RequestValidationError) -> Response:
        return _error(422, "; ".join(f"{error['loc'][-1]}: {error['msg']}" for error in e.errors()))

    @app.exception_handler(StarletteHTTPException)  # ours, and the router's 404 and 405
    async def refused(request: Request, e: StarletteHTTPException) -> Response:
        path = route_path(request.scope)
        if e.status_code == 404 and path[:-1] in routes and path.endswith("/"):
            query = f"?{request.url.query}" if request.url.query else ""
            return Response(status_code=307, headers={"location": f"../{path[1:-1]}{query}"})
        if e.status_code == 405:  # LimitsMiddleware makes HEAD of GET
            return _error(405, e.detail, {"allow": "GET, HEAD" if "GET" in routes[path] else "POST"})
        return _error(e.status_code, e.detail, e.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, e: Exception) -> Response:
        return _error(500, "internal error; see the log of the service")

    app.add_middleware(
        LimitsMiddleware,
        settings=settings,
        token=token,
        draining=lambda: service.draining,
        post_paths={path for path, methods in routes.items() if "POST" in methods},
        hosts=hosts,
    )
    app.add_middleware(
        MetricsMiddleware, metrics=service.metrics, paths=routes, leaving=lambda: service.leaving or service.draining
    )
    return app


def _error(status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    return Response(ErrorResponse(detail=detail).model_dump_json(), status, headers, media_type="application/json")


def _add_pages(app: FastAPI, service: Service, private: dict[str, Any]) -> None:
    @app.get("/", include_in_schema=False)
    async def home() -> Response:
        return HTMLResponse(page.HOME, headers={"content-security-policy": page.POLICY})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        text = page.docs(app.openapi(), private=bool(private["dependencies"]))
        return HTMLResponse(text, headers={"content-security-policy": page.policy_of(text)})

    @app.get("/samples/{i}", include_in_schema=False, dependencies=private["dependencies"])
    async def sample(i: int) -> Response:
        if not 0 <= i < len(service.samples):
            raise HTTPException(404, f"there are {len(service.samples)} samples, counted from 0")
        return Response(service.samples[i], media_type="image/png")

    @app.get("/health", response_class=PlainTextResponse, summary="Is the process running?", responses=ALWAYS)
    async def health() -> Response:
        return PlainTextResponse("ok")

    @app.get(
        "/ready",
        response_class=PlainTextResponse,
        summary="Is the service ready for requests?",
        responses=ALWAYS | NOT_READY,
    )
    async def ready() -> Response:
        reason = service.unready_reason()
        return PlainTextResponse(reason or "ok", 503 if reason else 200)

    @app.get("/metrics", response_class=PlainTextResponse, summary="Prometheus metrics.", **private)
    def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/model", summary="The served model and its limits.", **private)
    async def model() -> ModelInfo:
        c, settings = service.classifier, service.settings
        return ModelInfo(
            name=service.name,
            classes=list(c.classes),
            image_size=list(c.preprocess.image_size),
            in_channels=c.preprocess.in_channels,
            threshold=c.threshold,
            fit=c.preprocess.fit,
            features="features" in service.compute,
            evidence="evidence" in service.compute,
            max_bytes=settings.max_bytes,
            max_pixels=settings.max_pixels,
            max_request_pixels=settings.max_request_pixels,
            max_images=settings.max_images,
            samples=len(service.samples),
            runtime=str(c.runtime or ""),
            version=__version__,
        )


def _add_inference(app: FastAPI, service: Service, private: dict[str, Any]) -> None:
    errors = private["responses"] | ERRORS
    post = partial(app.post, openapi_extra=BODY, dependencies=private["dependencies"])
    classifier = service.classifier

    response = MultiLabelResponse if classifier.multi_label else PredictResponse

    @post("/predict", summary="Classify images.", responses=errors, response_model=response)
    async def predict(
        request: Request, top_k: Annotated[int, Query(ge=1, description="Number of classes per image.")] = 5
    ) -> Answer:
        start = time.perf_counter()
        answers = await service.handle("predict", request)
        records = [to_record(classifier.prediction(upload.name, row, top_k)) for upload, _, row in answers]
        return response.model_validate({"results": records, "time_ms": _ms_since(start)})

    @post(
        "/features",
        summary="Extract features: the input of the classification head.",
        responses=errors | _lacking("features"),
    )
    async def features(request: Request) -> FeaturesResponse:
        start = time.perf_counter()
        answers = await service.handle("features", request)
        results = [Features(image=upload.name, features=row.tolist()) for upload, _, row in answers]
        return FeaturesResponse(results=results, time_ms=_ms_since(start))

    @post(
        "/evidence",
        summary="Contribution of each patch to the logit of a class.",
        responses=errors | _lacking("evidence"),
    )
    async def evidence(
        request: Request,
        label: Annotated[
            str | None,
            Query(
                alias="class",
                description="Class name; default: the most likely class of each image.",
            ),
            WithJsonSchema({"type": "string", "enum": list(classifier.classes)}),
        ] = None,
    ) -> EvidenceResponse:
        if label is not None and label not in classifier.classes:
            raise HTTPException(422, f"the model has no class {label[:100]!r}; GET /model names them")
        start = time.perf_counter()
        answers = await service.handle("evidence", request)
        results = await asyncio.to_thread(lambda: [_evidence(service, label, *answer) for answer in answers])
        return EvidenceResponse(results=results, time_ms=_ms_since(start))


def _lacking(what: str) -> dict[int | str, dict[str, Any]]:
    return {404: {"model": ErrorResponse, "description": f"The model does not provide {what}."}}


def _ms_since(start: float) -> float:
    return round(1000 * (time.perf_counter() - start), 2)


def _evidence(
    service: Service, label: str | None, upload: Upload, pixels: Pixels, row: tuple[Any, Any]
) -> PatchEvidence:
    probabilities, own = row  # (K,), (S,K)
    assert service.evidence
    classes, grid = service.classifier.classes, service.evidence.grid
    k = classes.index(label) if label is not None else int(probabilities.argmax())
    bias = float(service.evidence.bias[k])
    return PatchEvidence(
        image=upload.name,
        label=classes[k],
        probability=round(float(probabilities[k]), 6),
        logit=bias + float(own[:, k].sum()),
        bias=bias,
        evidence=own[:, k].reshape(grid).tolist(),
        seen=_png(pixels),
    )


def _png(pixels: Pixels) -> str:
    """Pixels (H,W,C) as a PNG in a data: URL."""
    file = BytesIO()
    whole = np.rint(pixels).astype(np.uint8)
    Image.fromarray(whole[..., 0] if whole.shape[2] == 1 else whole).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
