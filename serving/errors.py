"""Errors that a client receives, in one shape everywhere, and what stays of a request that failed: nothing."""

import json
import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

from starlette.exceptions import HTTPException
from starlette.responses import Response

MAX_MESSAGE: Final = 500  # characters; what a client sent is quoted, but not at any length
MAX_FIELD: Final = 80
PROTOCOL_PATH: Final = "/v2"


class ApiError(Exception):
    """An answer with a 4xx or 5xx status.

    Args:
        status: HTTP status.
        code: what programs compare, for instance `image_truncated`.
        message: one sentence for people: what was expected, what was found, what to do.
        field: the part of the request that is at fault, for instance `inputs[2]`.
        headers: further response headers.
        close: whether the connection ends with it.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message[:MAX_MESSAGE]
        self.field = None if field is None else field[:MAX_FIELD]
        self.headers = dict(headers or {})
        self.close = close


class ClientGone(Exception):
    """The client closed the connection before its answer was ready."""


def busy(reason: str, retry_after: int) -> ApiError:
    """The refusal of a request for which there is no room now; `retry_after` in seconds."""
    message = f"{reason}; try again in {retry_after} s"
    return ApiError(503, "overloaded", message, headers={"Retry-After": str(retry_after)})


def is_of_protocol(path: str) -> bool:
    """Whether a path belongs to the Open Inference Protocol, whose errors have a shape of their own."""
    return path == PROTOCOL_PATH or path.startswith(f"{PROTOCOL_PATH}/")


def error_response(error: ApiError, request_id: str, path: str = "") -> Response:
    """An error with its status and headers.

    Its body is `{"error": {"code", "message", "field", "request_id"}}`; under /v2, as the Open Inference Protocol has
    it, `{"error": message}` with the rest beside it.

    Args:
        error: what went wrong.
        request_id: of the request.
        path: that was asked for; empty where there is none.
    """
    content = {"code": error.code, "message": error.message, "field": error.field, "request_id": request_id}
    body = {"error": content.pop("message"), **content} if is_of_protocol(path) else {"error": content}
    # In ASCII: what a client sent may hold characters that UTF-8 cannot write.
    return Response(
        json.dumps(body).encode(), status_code=error.status, headers=error.headers, media_type="application/json"
    )


def code_of_status(status: int) -> str:
    """The code of an error that has none of its own, for instance `not_found` for 404."""
    try:
        return HTTPStatus(status).phrase.lower().replace(" ", "_").replace("-", "_")
    except ValueError:
        return f"status_{status}"


def routing_error(error: HTTPException) -> ApiError:
    """Starlette's own errors (no such route, no such method), in the one shape of this server."""
    messages = {
        404: "there is no such path on this server; see /docs or /openapi.json",
        405: "this path does not answer this method; see the Allow header, /docs or /openapi.json",
    }
    message = messages.get(error.status_code, str(error.detail))
    return ApiError(error.status_code, code_of_status(error.status_code), message, headers=error.headers)


def forget_locals(error: BaseException) -> None:
    """Empties the frames that an exception came through, so that it holds nothing of the request that it ends.

    Without that, a photo or a video lives on with the error that it was refused with, and with those that led to it,
    until Python looks for cycles of objects. The lines of the traceback stay, for the log.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            traceback.clear_frames(one.__traceback__)
            chain += (one.__cause__, one.__context__)
