"""Go's compiler, assembler and linker: the native ones are cross compilers as they are.

They make code for $GOARCH, and the go command sets that variable for all that it starts (cmd/go,
main: "Set environment explicitly"). Go's builds are the same on all hosts by design
(go.dev/blog/rebuild), and these programs depend on no library. The go command itself stays
emulated: it is for its own architecture (GOHOSTARCH, the tools' directory).

One file of theirs has the host's architecture in its name: the counters of Go's telemetry, in the
user's configuration. They hold times, are never the same twice, and no build reads them.
"""

from __future__ import annotations

from maid.acceleration import records
from maid.acceleration.model import Tool

_GOARCH = {"arm64": "arm64"}
"""Go's names of the architectures for which the programs were compared."""

_VERSIONS = ("1.24", "1.25", "1.26")
"""Debian has a package for each. Before 1.24 Go's programs have no GNU build-id."""

TOOLS = tuple(
    Tool(
        f"go {name} {version}",
        f"golang-{version}-go",
        f"/usr/lib/go-{version}/pkg/tool/linux_{goarch}/{name}",
        "Go's builds are the same on every host",
        native_path=f"/usr/lib/go-{version}/pkg/tool/linux_amd64/{name}",
        rules=(
            # Otherwise it would make code for this machine.
            records.setting("GOARCH", goarch),
            records.environment("GOEXPERIMENT"),
            # Names features of the CPU it runs on.
            records.environment("GODEBUG"),
        ),
        foreign=(architecture,),
        on_demand=True,
    )
    for version in _VERSIONS
    for architecture, goarch in _GOARCH.items()
    for name in ("asm", "compile", "link")
)
"""All of them."""
