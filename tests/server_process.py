"""`genrecall serve` as a process of its own, for tests: ports, log, Prometheus page, kill."""

import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

import genrecall.serving

PACKAGE_PARENT = pathlib.Path(genrecall.serving.__file__).absolute().parents[2]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**variables):
    """This process's environment, in which a child imports the genrecall under test."""
    path = os.pathsep.join([str(PACKAGE_PARENT), *sys.path])
    return os.environ | {"PYTHONPATH": path} | variables


class ServerProcess:
    """A running `genrecall serve`; its log goes to a file.

    Args:
      log_path: pathlib.Path of the log, overwritten.
      flags: of the command, but for its ports.
      variables: of its environment.
    """

    def __init__(self, log_path, *flags, **variables):
        self.port, self.rest_port = free_port(), free_port()
        self.target = f"127.0.0.1:{self.port}"
        self.url = f"http://127.0.0.1:{self.rest_port}"
        self.log_path = log_path
        ports = ["--port", str(self.port), "--rest_api_port", str(self.rest_port)]
        with open(log_path, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "genrecall.cli", "serve", *ports, *flags],
                stderr=log,
                env=environment(**variables),
            )

    def log(self):
        return self.log_path.read_text()

    def wait_for_log(self, text, timeout_s=120.0):
        self.wait_until(lambda: text in self.log(), timeout_s)

    def wait_until(self, condition, timeout_s=30.0):
        end = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None and time.monotonic() < end, self.log()
            time.sleep(0.05)

    def metrics(self):
        """The Prometheus page: `name{labels}` -> value."""
        with urllib.request.urlopen(f"{self.url}/monitoring/prometheus/metrics") as reply:
            lines = reply.read().decode().splitlines()
        rows = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in rows}

    def metric(self, name):
        """The sum over the labels of a metric; 0 if it is not there yet."""
        found = (v for key, v in self.metrics().items() if key.split("{")[0] == name)
        return sum(found)

    def kill(self):
        """kill -9."""
        self.process.kill()
        self.process.wait()
