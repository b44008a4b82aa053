"""The options that say how registries are reached, for every command that speaks to one."""

from __future__ import annotations

from typing import Annotated

import typer

from maid.images.skopeo import Access, Skopeo, parse_verify

AuthfileOption = Annotated[
    str, typer.Option("--authfile", help="Registries' passwords, as skopeo has it.", metavar="FILE")
]
CredsOption = Annotated[
    str, typer.Option("--creds", help="For the registry, now.", metavar="USER[:PASSWORD]")
]
CertDirOption = Annotated[
    str, typer.Option("--cert-dir", help="Certificates to trust.", metavar="DIR")
]
VerifyOption = Annotated[
    str,
    typer.Option(
        "--tls-verify", help="false: a registry without TLS will do.", metavar="true|false"
    ),
]


def skopeo(authfile: str, creds: str, cert_dir: str, tls_verify: str) -> Skopeo:
    """skopeo with the access that the options give. Raises UsageError."""
    return Skopeo(Access(authfile, creds, cert_dir, parse_verify(tls_verify)))
