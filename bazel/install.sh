#!/usr/bin/env bash
# Installs Debian's Bazel and the rule folders .bazelrc points to, unless they are there.
set -euo pipefail
packages=(bazel-bootstrap bazel-skylib bazel-rules-java bazel-rules-proto bazel-platforms)
if dpkg -s "${packages[@]}" >/dev/null 2>&1; then exit 0; fi
command -v apt-get >/dev/null || { echo "make bazel-test needs Debian's packages: ${packages[*]}" >&2; exit 1; }
sudo=""; [ "$(id -u)" = 0 ] || sudo="sudo"
$sudo apt-get update -qq
$sudo apt-get install -y -qq "${packages[@]}"
