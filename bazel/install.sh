#!/usr/bin/env bash
# Installs Debian's Bazel and the rule folders .bazelrc points to, unless they are there, and writes .bazelrc.local.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
packages=(bazel-bootstrap bazel-skylib bazel-rules-java bazel-rules-proto bazel-platforms)
if ! dpkg -s "${packages[@]}" >/dev/null 2>&1; then
  command -v apt-get >/dev/null || { echo "make bazel-test needs Debian's packages: ${packages[*]}" >&2; exit 1; }
  sudo=""; [ "$(id -u)" = 0 ] || sudo="sudo"
  $sudo apt-get update -qq
  $sudo apt-get install -y -qq "${packages[@]}"
fi
{
  for stub in rules_cc remote_coverage_tools; do
    echo "common --override_repository=$stub=$root/bazel/stubs/$stub"
  done
} > "$root/.bazelrc.local"
