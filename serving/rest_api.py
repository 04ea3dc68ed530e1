"""The HTTP paths of tensorflow_model_server, and its Prometheus page, on aiohttp.

Knows no model: the core does the work.
"""

import asyncio
import contextlib
import json
import logging
import re
import threading
import urllib.parse
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass

from aiohttp import web
from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2

from genrecall.serving.core import SIGNATURE_DEF, ServerCore
from genrecall.serving.errors import Code, ServingError, invalid_argument
from genrecall.serving.json_reply import format_predict
from genrecall.serving.json_request import Inputs, parse_predict
from genrecall.serving.metrics import CONTENT_TYPE, RequestMetrics

_LOG = logging.getLogger(__name__)

METRICS_PATH = "/monitoring/prometheus/metrics"

_SPEC = r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICTION = re.compile(_SPEC + r":(?P<method>classify|regress|predict)", re.IGNORECASE)
_STATUS = re.compile(_SPEC + r"(?:/(?P<metadata>metadata))?", re.IGNORECASE)


@dataclass(frozen=True)
class RestOptions:
    """Where the HTTP server listens (port 0: any free one) and what it bears."""

    host: str = "127.0.0.1"
    port: int = 8501
    threads: int = 16
    timeout_s: float = 30.0
    max_body_bytes: int = 256 << 20
    enable_cors: bool = False


class RestServer:
    """Serves a core over HTTP/1.1: an event loop in its own thread, requests in a pool of threads.

    Args:
      core: the models.
      metrics: counts every :predict, and gives the first part of the Prometheus page.
      process_metrics: the second part, the process's other metrics. May be slow.
      options: see RestOptions.
    """

    def __init__(
        self,
        core: ServerCore,
        metrics: RequestMetrics,
        process_metrics: Callable[[], str] = lambda: "",
        options: RestOptions = RestOptions(),
    ):
        self._core = core
        self._metrics = metrics
        self._process_metrics = process_metrics
        self._options = options
        self._pool = futures.ThreadPoolExecutor(options.threads, thread_name_prefix="rest")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="rest-loop", daemon=True
        )
        self._runner: web.AppRunner | None = None
        self._in_flight = 0  # like _draining, used in the event loop's thread only
        self._draining = False
        self.port = options.port

    def start(self) -> None:
        """Binds and serves; `port` is the bound port afterwards.

        Raises:
          OSError: the address cannot be bound.
        """
        self._thread.start()
        try:
            asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        except OSError as error:
            self.stop(0)
            raise OSError(
                f"REST cannot listen on {self._options.host}:{self._options.port}: "
                f"{error.strerror or error}"
            ) from error

    def stop(self, grace_s: float) -> None:
        """Refuses new connections, waits up to `grace_s` for requests in flight, then closes."""

        async def cleanup():
            if self._runner is not None:
                for site in list(self._runner.sites):
                    await site.stop()
                self._draining = True
                deadline = self._loop.time() + grace_s
                while self._in_flight and self._loop.time() < deadline:
                    await asyncio.sleep(0.02)
                await self._runner.cleanup()

        with contextlib.suppress(futures.TimeoutError):
            asyncio.run_coroutine_threadsafe(cleanup(), self._loop).result(grace_s + 5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _start(self) -> None:
        app = web.Application(client_max_size=self._options.max_body_bytes)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._options.host, self._options.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _handle(self, request: web.Request) -> web.Response:
        self._in_flight += 1
        try:
            response = await self._answer(request)
        finally:
            self._in_flight -= 1
        if self._draining:
            response.force_close()  # the client's next request goes to another server
        return response

    async def _answer(self, request: web.Request) -> web.Response:
        if self._options.enable_cors and request.method == "OPTIONS":
            return self._reply(200, "")
        try:
            if request.path == METRICS_PATH and request.method == "GET":
                text = await self._in_pool(lambda: self._metrics.text() + self._process_metrics())
                return web.Response(text=text, headers={"Content-Type": CONTENT_TYPE})
            body = await asyncio.wait_for(request.read(), self._options.timeout_s)
            # Routed on the raw path: a model name may contain an escaped slash.
            path = request.rel_url.raw_path
            return self._reply(200, await self._in_pool(self._process, request.method, path, body))
        except ServingError as error:
            return self._reply(error.http_status, _error(error.message))
        except web.HTTPRequestEntityTooLarge:
            limit = self._options.max_body_bytes
            return self._reply(413, _error(f"the body is longer than {limit} bytes"))
        except asyncio.TimeoutError:
            limit = self._options.timeout_s
            return self._reply(408, _error(f"the body did not arrive within {limit:g} s"))
        except (web.HTTPException, ConnectionError):
            raise
        except Exception as error:
            _LOG.exception("%s %s failed unexpectedly", request.method, request.path)
            return self._reply(500, _error(f"{type(error).__name__}: {error}"))

    def _in_pool(self, function: Callable, *args):
        return self._loop.run_in_executor(self._pool, function, *args)

    def _reply(self, status: int, text: str) -> web.Response:
        headers = {"Content-Type": "application/json"}
        if self._options.enable_cors:
            headers |= {
                "Access-Control-Allow-Origin": "*",
                "Access-Control-Allow-Methods": "POST, GET",
                "Access-Control-Allow-Headers": "Content-Type",
            }
        return web.Response(status=status, body=text.encode("utf-8", "replace"), headers=headers)

    # ---- in the pool

    def _process(self, method: str, path: str, body: bytes) -> str:
        """The JSON reply to one request; raises ServingError."""
        if not path.lower().startswith("/v1/"):
            raise ServingError(Code.NOT_FOUND, f"no such path: {path}")
        if method == "POST" and (match := _PREDICTION.fullmatch(path)):
            return self._predict(match, body)
        if method == "GET" and (match := _STATUS.fullmatch(path)):
            return self._metadata(match) if match["metadata"] else self._status(match)
        if method == "GET" and path.lower() == "/v1/models":
            raise invalid_argument("Missing model name in request.")
        raise invalid_argument(f"Malformed request: {method} {path}")

    def _predict(self, match: re.Match, body: bytes) -> str:
        spec = _model_spec(match)
        if match["method"].lower() != "predict":
            raise ServingError(
                Code.UNIMPLEMENTED, f"{match['method']} is not served here; use :predict"
            )
        with (
            self._metrics.measure(spec.name, "Predict", "REST"),
            self._core.acquire(spec) as servable,
        ):

            def inputs_of(signature_name: str) -> Inputs:
                infos, optional = servable.inputs_of(signature_name)
                return Inputs(infos, frozenset(optional))

            request, batched = parse_predict(body, inputs_of)
            response = servable.predict(request, self._options.timeout_s)
            return format_predict(response.outputs, batched)

    def _status(self, match: re.Match) -> str:
        response = self._core.status(_model_spec(match))
        return _json(response) + "\n"

    def _metadata(self, match: re.Match) -> str:
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=_model_spec(match), metadata_field=[SIGNATURE_DEF]
        )
        response = self._core.metadata(request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata[SIGNATURE_DEF].Unpack(signatures)
        # Not the message as a whole: that would show the Any's "@type", which is not expected.
        return (
            f'{{\n"model_spec":{_json(response.model_spec)}\n,\n'
            f'"metadata": {{"{SIGNATURE_DEF}": {_json(signatures)}\n}}\n}}\n'
        )


def _model_spec(match: re.Match) -> model_pb2.ModelSpec:
    spec = model_pb2.ModelSpec(name=urllib.parse.unquote(match["name"]))
    if match["version"]:
        try:
            spec.version.value = int(match["version"])
        except ValueError:
            raise invalid_argument(
                f"Failed to convert version: {match['version']} to numeric."
            ) from None
    elif match["label"]:
        spec.version_label = urllib.parse.unquote(match["label"])
    return spec


def _json(message) -> str:
    return json_format.MessageToJson(
        message,
        indent=1,
        preserving_proto_field_name=True,
        always_print_fields_with_no_presence=True,
    )


def _error(message: str) -> str:
    return f'{{ "error": {json.dumps(message, ensure_ascii=False)} }}'
