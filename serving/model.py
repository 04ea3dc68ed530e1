"""All versions of one model: polling, background loads, swaps, unloads. Knows no transport.

The rules are tensorflow_model_server's availability-preserving policy, with two improvements:

- The newest `latest` version folders are wanted (or all, or a fixed list). A wanted version is
  loaded, warmed up, and only then visible; what is no longer wanted is unloaded after that, once
  its requests in flight are answered.
- A version that fails to load ends with its error in the status, and the next older one is wanted
  in its place: the old version keeps serving, and a restarted server comes up on it too.
- A failed version is tried again when its files change: a folder that was still being copied heals.
- The last serving version stays even if its folder is deleted.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tensorflow_serving.apis import get_model_status_pb2

from genrecall.serving.errors import Code, ServingError, not_found
from genrecall.serving.servable import Servable

_LOG = logging.getLogger(__name__)

State = get_model_status_pb2.ModelVersionStatus.State

_WAITING_WARNING_S = 10.0


@dataclass(frozen=True)
class VersionPolicy:
    """Which version folders are wanted: the listed ones, or the newest `latest` (0: all)."""

    latest: int = 1
    specific: tuple[int, ...] = ()

    def choose(self, versions) -> list[int]:
        """The wanted ones among `versions`, newest first."""
        newest_first = sorted(versions, reverse=True)
        if self.specific:
            return [version for version in newest_first if version in self.specific]
        return newest_first[: self.latest] if self.latest else newest_first


@dataclass(frozen=True)
class ModelConfig:
    """One served model: the folder of its numbered versions, and names for some of them."""

    name: str
    base_path: str
    policy: VersionPolicy = VersionPolicy()
    labels: dict[str, int] = field(default_factory=dict)


@dataclass
class _Version:
    state: int = State.START
    error: ServingError | None = None
    servable: Servable | None = None
    in_flight: int = 0
    fingerprint: tuple = ()  # of the files that failed to load


class Model:
    """The versions of one model, kept up to date by one background thread.

    Args:
      config: what to serve.
      load: (version, path) -> Servable; raises ServingError. Called in the background thread only.
    """

    def __init__(self, config: ModelConfig, load: Callable[[int, str], Servable]):
        self.config = config
        self._load = load
        self._changed = threading.Condition()
        self._versions: dict[int, _Version] = {}
        self._polls_wanted = (
            0  # how many polls have been asked for, and up to which one they are done
        )
        self._polls_done = 0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"poll-{config.name}", daemon=True)
        self._unloaders: list[threading.Thread] = []
        self._poll_s = 1.0
        self._last_warning = ("", 0.0)

    def start(self, poll_s: float) -> None:
        """Starts polling every `poll_s` seconds; 0: only when refreshed."""
        self._poll_s = poll_s
        self._thread.start()

    def refresh(self, config: ModelConfig | None = None, timeout_s: float | None = None) -> bool:
        """Polls now, with a new config if given, and waits until all found is loaded or failed.

        Returns:
          False if that took longer than `timeout_s`.
        """
        with self._changed:
            if config is not None:
                self.config = config
            self._polls_wanted += 1
            mine = self._polls_wanted
            self._changed.notify_all()
            return self._changed.wait_for(
                lambda: self._polls_done >= mine or self._stopping, timeout_s
            )

    def stop(self, timeout_s: float | None = None) -> bool:
        """Stops polling and unloads everything, after the requests in flight.

        Returns:
          False if a load or a request was still running after `timeout_s`; it goes on by itself.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join(timeout_s)
        for version in self._serving():
            self._unload(version)
        for thread in self._unloaders:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in [self._thread, *self._unloaders])

    @contextlib.contextmanager
    def acquire(self, version: int | None = None) -> Iterator[Servable]:
        """The servable of a version, or the newest one, kept loaded inside the `with` block.

        Raises:
          ServingError: NOT_FOUND if that version is not serving.
        """
        with self._changed:
            wanted = max(self._serving(), default=None) if version is None else version
            entry = self._versions.get(wanted)
            if entry is None or entry.state != State.AVAILABLE:
                request = (
                    f"Latest({self.config.name})"
                    if version is None
                    else f"Specific({self.config.name}, {version})"
                )
                raise not_found(f"Servable not found for request: {request}")
            entry.in_flight += 1
        try:
            yield entry.servable
        finally:
            with self._changed:
                entry.in_flight -= 1
                if entry.in_flight == 0:
                    self._changed.notify_all()

    def status(self) -> dict[int, tuple[int, ServingError | None]]:
        """version -> (state, error or None) of every version seen since the start, newest first."""
        with self._changed:
            return {v: (e.state, e.error) for v, e in sorted(self._versions.items(), reverse=True)}

    # ---- the background thread

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
                covered = self._polls_wanted
            try:
                self._poll()
            except Exception:  # the poller must survive whatever a file system or a model does
                _LOG.exception(
                    "model %s: polling %s failed", self.config.name, self.config.base_path
                )
            with self._changed:
                self._polls_done = covered
                self._changed.notify_all()
                self._changed.wait_for(
                    lambda covered=covered: self._stopping or self._polls_wanted > covered,
                    self._poll_s or None,
                )

    def _poll(self) -> None:
        folders = self._scan()
        usable = {version for version, path in folders.items() if not self._failed(version, path)}
        while True:
            wanted = self.config.policy.choose(usable)
            missing = [version for version in wanted if version not in self._serving()]
            if self._stopping:
                return
            if not missing:
                break
            if not self._load_version(missing[0], folders[missing[0]]):
                usable.discard(missing[0])
        if not wanted:  # nothing usable on disk: whatever still serves is the last, and stays
            return
        for version in self._serving():
            if version not in wanted:
                self._unload(version)

    def _scan(self) -> dict[int, str]:
        """version -> folder, of the numbered folders that hold a SavedModel."""
        base = self.config.base_path
        try:
            names = os.listdir(base)
        except OSError as error:
            self._warn(f"base path {base} cannot be read ({error.strerror}); waiting for it")
            return {}
        folders = {}
        for name in names:
            path = os.path.join(base, name)
            if name.isascii() and name.isdigit() and _has_saved_model(path):
                folders[int(name)] = path
        if not folders:
            self._warn(
                f"no versions of the servable {self.config.name} found under base path "
                f"{base}; waiting for one"
            )
        return folders

    def _warn(self, message: str) -> None:
        """Logs it, unless the same was logged less than _WAITING_WARNING_S ago."""
        now = time.monotonic()
        last, logged_at = self._last_warning
        if message != last or now - logged_at >= _WAITING_WARNING_S:
            self._last_warning = (message, now)
            _LOG.warning("model %s: %s", self.config.name, message)

    def _failed(self, version: int, path: str) -> bool:
        """Whether the version failed to load, from files that have not changed since."""
        entry = self._versions.get(version)
        return (
            entry is not None
            and entry.error is not None
            and entry.fingerprint == _fingerprint(path)
        )

    def _load_version(self, version: int, path: str) -> bool:
        fingerprint = _fingerprint(
            path
        )  # before the load: a file that arrives during it makes us try again
        entry = _Version(state=State.LOADING)
        with self._changed:
            self._versions[version] = entry
        _LOG.info("model %s version %d: loading from %s", self.config.name, version, path)
        start = time.monotonic()
        try:
            servable = self._load(version, path)
        except ServingError as error:
            # Without its traceback, which would keep the half-loaded version in memory.
            kept = ServingError(error.code, error.message)
            with self._changed:
                entry.state, entry.error, entry.fingerprint = State.END, kept, fingerprint
            _LOG.error(
                "model %s version %d: not loaded: %s", self.config.name, version, error.message
            )
            return False
        with self._changed:
            entry.servable, entry.state = servable, State.AVAILABLE
        _LOG.info(
            "model %s version %d: available after %.1f s, signatures: %s",
            self.config.name,
            version,
            time.monotonic() - start,
            ", ".join(servable.signature_names),
        )
        return True

    def _unload(self, version: int) -> None:
        """Takes the version out of service now, and frees it once its last request is answered."""
        entry = self._versions[version]
        with self._changed:
            entry.state = State.UNLOADING
        _LOG.info("model %s version %d: unloading", self.config.name, version)

        def free():
            with self._changed:
                self._changed.wait_for(lambda: entry.in_flight == 0)
                servable, entry.servable = entry.servable, None
            servable.close()
            with self._changed:
                entry.state = State.END
            _LOG.info("model %s version %d: unloaded", self.config.name, version)

        thread = threading.Thread(
            target=free, name=f"unload-{self.config.name}-{version}", daemon=True
        )
        thread.start()
        self._unloaders = [t for t in self._unloaders if t.is_alive()] + [thread]

    def _serving(self) -> list[int]:
        return [
            version
            for version, entry in list(self._versions.items())
            if entry.state == State.AVAILABLE
        ]


def _has_saved_model(path: str) -> bool:
    return any(
        os.path.isfile(os.path.join(path, name)) for name in ("saved_model.pb", "saved_model.pbtxt")
    )


def _fingerprint(path: str) -> tuple:
    """Names, sizes and times of all files under `path`."""
    files = []
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                stat = os.stat(file)
                files.append((file, stat.st_size, stat.st_mtime_ns))
    return tuple(sorted(files))


def status_error(error: ServingError | None) -> tuple[Code, str]:
    """The code and message that a version's status reports."""
    return (Code.OK, "") if error is None else (error.code, error.message)
