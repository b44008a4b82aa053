"""Where the compiled helpers are. Knows nothing of what they do.

They are built by `make -C daemon/native LIBEXEC=DIR`: a handful of small C programs for what cannot
wait for a Python interpreter to start, or must run before one may (a fork between two namespaces).
"""

from __future__ import annotations

import os
import sys

from maid.errors import MaidError


def path(name: str) -> str:
    """The absolute path of the helper `name`.

    Looked for in $MAID_LIBEXEC, then in libexec/maid of the Python environment that maid runs from.
    Raises MaidError when it is in neither.
    """
    places = [os.environ.get("MAID_LIBEXEC", ""), os.path.join(sys.prefix, "libexec", "maid")]
    for place in filter(None, places):
        found = os.path.join(os.path.abspath(place), name)
        if os.path.exists(found):
            return found
    raise MaidError(
        f"maid's compiled helper {name} is not in {' or '.join(filter(None, places))}",
        f"build it: make -C daemon/native LIBEXEC={places[-1]}",
    )
