#!/bin/bash
# registry.sh: print the path of a registry's program (docker-registry); fetch it where the cache
# ($MAID_CACHE, ~/.cache/maid) does not hold it. For tests and benchmarks.
set -euo pipefail
lib=$(dirname "$(readlink -f "$0")")
. "$lib/common.sh"
. "$lib/packages.sh"

registry
