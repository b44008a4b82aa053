"""The options that say how registries are reached, for every command that speaks to one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Annotated

import typer

from maid.images.credentials import authfile_with
from maid.images.references import REGISTRY, Reference
from maid.images.skopeo import Access, Skopeo, parse_verify

AuthfileOption = Annotated[
    str, typer.Option("--authfile", help="Registries' passwords, as skopeo has it.", metavar="FILE")
]
CredsOption = Annotated[
    str,
    typer.Option("--creds", help="For the one registry that is named.", metavar="USER[:PASSWORD]"),
]
CertDirOption = Annotated[
    str, typer.Option("--cert-dir", help="Certificates of registries to trust.", metavar="DIR")
]
VerifyOption = Annotated[
    str,
    typer.Option(
        "--tls-verify", help="false: a registry without TLS will do.", metavar="true|false"
    ),
]


def access(
    authfile: str, creds: str, cert_dir: str, tls_verify: str, hosts: Iterable[str]
) -> Access:
    """What the options give. `hosts` are the registries that the command speaks to: --creds is for
    one alone. Raises UsageError."""
    if creds:
        authfile = authfile_with(creds, hosts, authfile, os.environ)
    return Access(authfile, cert_dir, parse_verify(tls_verify))


def skopeo(
    authfile: str,
    creds: str,
    cert_dir: str,
    tls_verify: str,
    references: Iterable[Reference],
) -> Skopeo:
    """skopeo with the access that the options give to what the command names. Raises UsageError."""
    hosts = {each.host for each in references if each.transport == REGISTRY}
    return Skopeo(access(authfile, creds, cert_dir, tls_verify, hosts))
