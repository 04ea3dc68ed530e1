"""One exception for whatever a request can meet, and its gRPC and HTTP faces."""

import grpc

Code = grpc.StatusCode

_BY_NUMBER = {code.value[0]: code for code in Code}

# As tensorflow_model_server maps canonical codes to HTTP.
_HTTP_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.UNAUTHENTICATED: 401,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
}


class ServingError(Exception):
    """A request or a load that failed.

    Attributes:
      code: grpc.StatusCode, never OK.
      message: what a client reads.
    """

    def __init__(self, code: Code, message: str):
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def http_status(self) -> int:
        return _HTTP_STATUS[self.code]


def invalid_argument(message: str) -> ServingError:
    return ServingError(Code.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServingError:
    return ServingError(Code.NOT_FOUND, message)


def code_of_number(number: int) -> Code:
    """The status code of a canonical code number, TensorFlow's and gRPC's; UNKNOWN if none."""
    return _BY_NUMBER.get(number, Code.UNKNOWN)
