"""Errors as OpenAI's API words them, and which of ours becomes which."""

from __future__ import annotations

from collections.abc import Mapping

from infra.contracts.errors import FeedloomError
from infra.contracts.events.generation import GenerationError

INVALID = "invalid_request_error"
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
    504: "timeout_error",
}


class ApiError(FeedloomError):
    """Ends a call with a status and a body that names the fault.

    ``param``: the field of the body at fault. ``retry_after_s``: when to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            # Whole seconds, and never earlier than said.
            self.headers["Retry-After"] = str(max(1, -int(-retry_after_s // 1)))

    @property
    def body(self) -> dict[str, dict[str, str | None]]:
        """As OpenAI's: ``{"error": {"message", "type", "param", "code"}}``."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, INVALID),
                "param": self.param,
                "code": self.code,
            }
        }


def invalid(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the caller must change the request."""
    return ApiError(400, message, param=param, code=code)


def not_found(message: str, *, code: str = "not_found") -> ApiError:
    """404; the same for what is not there and for what is another tenant's."""
    return ApiError(404, message, code=code)


def unknown_model(model: str) -> ApiError:
    """404, with where to look."""
    return not_found(
        f"there is no model {model!r}; GET /v1/models lists them", code="model_not_found"
    )


def unavailable(message: str, *, code: str, retry_after_s: float = 5.0) -> ApiError:
    """503: nothing is wrong with the request."""
    return ApiError(503, message, code=code, retry_after_s=retry_after_s)


def timed_out(message: str) -> ApiError:
    """504: no answer by the deadline."""
    return ApiError(504, message, code="deadline_exceeded")


_REFUSALS: Mapping[str, str | None] = {
    "invalid_sampling": None,
    "invalid_messages": "messages",
    "invalid_prompt": "prompt",
    "prompt_too_long": None,
    "too_many_tokens": "max_tokens",
}


def of_result(error: GenerationError) -> ApiError:
    """The error with which a worker answered."""
    if error.code == "unknown_model":
        return not_found(error.message, code="model_not_found")
    if error.code == "engine_error":
        return unavailable(f"the model failed: {error.message}", code="engine_error")
    message = error.message.replace("sampling.", "")
    return invalid(message, code=error.code, param=_REFUSALS.get(error.code))
