"""``/v1/files`` and ``/v1/batches``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, ParamSpec, TypeVar, cast

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import Response, StreamingResponse

from infra.contracts.errors import FeedloomError
from producers.gateway.batches import description, shapes
from producers.gateway.batches.errors import FileMissing, FileStoreFailed
from producers.gateway.batches.service import INPUT, BatchService
from producers.gateway.bodies import Body, Name
from producers.gateway.errors import ApiError, invalid, not_found, unavailable
from producers.gateway.http import Caller, body_of, json_response

P = ParamSpec("P")
T = TypeVar("T")

MAX_FIELDS = 8
FILES_LIMIT = 10_000
BATCHES_LIMIT = 100
FILENAME_LIMIT = 255

router = APIRouter(prefix="/v1")


class BatchBody(Body):
    """``POST /v1/batches``."""

    input_file_id: Name
    endpoint: Literal["/v1/chat/completions", "/v1/completions"]
    completion_window: Literal["24h"]
    metadata: (
        Annotated[
            dict[
                Annotated[str, Field(min_length=1, max_length=64)],
                Annotated[str, Field(max_length=512)],
            ],
            Field(max_length=16),
        ]
        | None
    ) = None


def batches_of(request: Request) -> BatchService:
    """This replica's."""
    return cast(BatchService, request.app.state.batches)


Batches = Annotated[BatchService, Depends(batches_of)]


async def _blocking(function: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Call what may block. Raises ApiError, 503 for what is not the caller's fault."""
    try:
        return await run_in_threadpool(function, *args, **options)
    except ApiError:
        raise
    except FileMissing:
        raise not_found("the file is not in the store any more") from None
    except FileStoreFailed as error:
        raise unavailable("the file store cannot be reached", code="files_unavailable") from error
    except FeedloomError as error:
        raise unavailable(
            "files and batches cannot be read or written now", code="broker_gone"
        ) from error


@router.post("/files", tags=["files"], openapi_extra=description.UPLOAD, responses=description.FILE)
async def upload_file(request: Request, caller: Caller, batches: Batches) -> Response:
    """Keep a file of requests, for a batch."""
    caller.require("caller")
    content_type = request.headers.get("content-type", "").partition(";")[0]
    if content_type.strip().lower() != "multipart/form-data":
        raise ApiError(415, "the body must be multipart/form-data", code="unsupported_media_type")
    # Larger parts go to this machine's disk as they come.
    async with request.form(max_files=1, max_fields=MAX_FIELDS) as form:
        for name in form:
            if name not in ("file", "purpose"):
                raise invalid(
                    f"unsupported parameter: {name}", param=name, code="unsupported_parameter"
                )
        if form.get("purpose") != INPUT:
            raise invalid(f"purpose must be {INPUT!r}", param="purpose")
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise invalid("file must be a file", param="file")
        event = await _blocking(
            batches.upload,
            caller,
            (file.filename or "file")[-FILENAME_LIMIT:],
            file.file,
            file.size or 0,
        )
    return json_response(shapes.file_object(event), {})


@router.get(
    "/files",
    tags=["files"],
    openapi_extra=description.list_of(FILES_LIMIT, description.PURPOSE, description.ORDER),
    responses=description.FILES,
)
async def list_files(request: Request, caller: Caller, batches: Batches) -> Response:
    """The tenant's files; newest first unless ``order=asc``."""
    caller.require("caller")
    order = request.query_params.get("order", "desc")
    if order not in ("asc", "desc"):
        raise invalid("order is asc or desc", param="order")
    found, more = await _blocking(
        batches.files,
        caller,
        purpose=request.query_params.get("purpose"),
        newest_first=order == "desc",
        after=request.query_params.get("after"),
        limit=_limit(request, FILES_LIMIT, default=FILES_LIMIT),
    )
    return json_response(shapes.page([shapes.file_object(one) for one in found], more=more), {})


@router.get("/files/{file_id}", tags=["files"], responses=description.FILE)
async def get_file(file_id: str, caller: Caller, batches: Batches) -> Response:
    """What is known of a file."""
    caller.require("caller")
    return json_response(shapes.file_object(await _blocking(batches.file, caller, file_id)), {})


@router.get("/files/{file_id}/content", tags=["files"], responses=description.CONTENT)
async def get_content(file_id: str, caller: Caller, batches: Batches) -> Response:
    """A file's bytes."""
    caller.require("caller")
    blocks = await _blocking(batches.content, caller, file_id)
    return StreamingResponse(blocks, media_type="application/octet-stream")


@router.delete("/files/{file_id}", tags=["files"], responses=description.DELETED)
async def delete_file(file_id: str, caller: Caller, batches: Batches) -> Response:
    """Remove a file for good."""
    caller.require("caller")
    event = await _blocking(batches.delete, caller, file_id)
    return json_response({"id": event.file_id, "object": "file", "deleted": True}, {})


@router.post(
    "/batches",
    tags=["batches"],
    openapi_extra=description.body_of(BatchBody),
    responses=description.BATCH,
)
async def create_batch(request: Request, caller: Caller, batches: Batches) -> Response:
    """Have the requests of a file answered, in what interactive ones leave free."""
    caller.require("caller")
    body = await body_of(request, BatchBody)
    event = await _blocking(
        batches.create,
        caller,
        input_file_id=body.input_file_id,
        endpoint=body.endpoint,
        metadata=body.metadata or {},
    )
    return json_response(shapes.batch_object(event), {})


@router.get(
    "/batches",
    tags=["batches"],
    openapi_extra=description.list_of(BATCHES_LIMIT),
    responses=description.BATCHES,
)
async def list_batches(request: Request, caller: Caller, batches: Batches) -> Response:
    """The tenant's batches, newest first."""
    caller.require("caller")
    found, more = await _blocking(
        batches.batches,
        caller,
        after=request.query_params.get("after"),
        limit=_limit(request, BATCHES_LIMIT, default=20),
    )
    return json_response(shapes.page([shapes.batch_object(one) for one in found], more=more), {})


@router.get("/batches/{batch_id}", tags=["batches"], responses=description.BATCH)
async def get_batch(batch_id: str, caller: Caller, batches: Batches) -> Response:
    """A batch as it stands."""
    caller.require("caller")
    return json_response(shapes.batch_object(await _blocking(batches.batch, caller, batch_id)), {})


@router.post("/batches/{batch_id}/cancel", tags=["batches"], responses=description.BATCH)
async def cancel_batch(batch_id: str, caller: Caller, batches: Batches) -> Response:
    """Stop what is left of a batch; what is answered by then is in its output file."""
    caller.require("caller")
    return json_response(shapes.batch_object(await _blocking(batches.cancel, caller, batch_id)), {})


def _limit(request: Request, most: int, *, default: int) -> int:
    text = request.query_params.get("limit")
    if text is None:
        return default
    if not text.isascii() or not text.isdecimal() or len(text) > 6 or not 1 <= int(text) <= most:
        raise invalid(f"limit is a number from 1 to {most}", param="limit")
    return int(text)
