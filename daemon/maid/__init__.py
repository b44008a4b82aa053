"""maid: run every platform's binaries on this machine, prove it, keep it so."""

__version__ = "0.1.0"
