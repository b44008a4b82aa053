"""`maid pull`: fetch the image that fits a platform."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from maid import platforms
from maid.cli import render
from maid.cli.common import show_json
from maid.cli.registry import AuthfileOption, CertDirOption, CredsOption, VerifyOption, skopeo
from maid.cli.transfers import amount, watching
from maid.errors import UsageError
from maid.images import cache, select
from maid.images import pull as images
from maid.images.references import Reference, parse_reference
from maid.images.skopeo import Skopeo
from maid.images.sources import Source, open_source
from maid.images.staging import require_makeable
from maid.images.unpack import unpack as unpack_image
from maid.platforms import Matcher


def pull(
    reference: Annotated[
        str,
        typer.Argument(metavar="REF", help="For example registry.example/app:1.0, or oci:DIR:TAG."),
    ],
    platform: Annotated[
        str, typer.Option(help="The platform; this machine's if it is left out.", metavar="P")
    ] = "",
    to: Annotated[
        str,
        typer.Option(
            help="Where the image goes: oci:DIR[:TAG], or another of skopeo's transports.",
            metavar="DEST",
        ),
    ] = "",
    unpack: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Make DIR the image's root file system, for maid run.", metavar="DIR"),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="The whole index, with every image and attestation.")
    ] = False,
    accept_any: Annotated[
        bool,
        typer.Option(
            "--any",
            help="Also a single image of another platform, or one that is not what its index says.",
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="That very platform, nothing that would do for it.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the digest, and nothing else.")
    ] = False,
    authfile: AuthfileOption = "",
    creds: CredsOption = "",
    cert_dir: CertDirOption = "",
    tls_verify: VerifyOption = "",
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document (docs/json.md).")
    ] = False,
) -> None:
    """Fetch the image of REF that fits a platform, and say which one it was. Exit status 3: there
    is none, and what there is is listed.

    Without --to and --unpack it goes where podman and buildah keep their images
    (containers-storage), under the name it was asked for by. What --unpack fetches is kept in
    /var/lib/maid/images, a user's in ~/.cache/maid/images (MAID_IMAGES names another directory):
    30 days since its last use, and 10 GiB of it.

    On a terminal a bar shows the bytes that are there, where the image goes to an OCI layout, a
    dir: or --unpack; elsewhere only that it is being copied."""
    if to and unpack is not None:
        raise UsageError("--to and --unpack are two things", "one after the other")
    if everything and (unpack is not None or platform or strict):
        raise UsageError("--all takes every platform", "it goes with --to oci:DIR:TAG")
    if everything and not to:
        raise UsageError("--all needs a place with room for an index", "--to oci:DIR:TAG")
    wanted = platforms.parse(platform) if platform else platforms.host()
    matcher = platforms.only_strict(wanted) if strict else platforms.only(wanted)
    source = parse_reference(reference)
    destination = images.parse_destination(to, source) if to else None
    named = [source, destination] if destination else [source]
    program = skopeo(authfile, creds, cert_dir, tls_verify, named)
    shown = _Shown(quiet, as_json)
    with open_source(source, program) as opened:
        if everything:
            assert destination is not None
            _pull_all(program, opened, destination, shown)
        elif unpack is not None:
            _unpack(program, opened, matcher, accept_any, unpack, shown)
        else:
            _pull(program, opened, matcher, accept_any, destination, shown)


@dataclass(frozen=True)
class _Shown:
    """What is to be seen."""

    quiet: bool
    as_json: bool

    @property
    def nothing(self) -> bool:
        return self.quiet or self.as_json

    def chosen(self, choice: select.Choice) -> None:
        """What was chosen, before it is fetched."""
        if self.nothing:
            return
        offered = ", ".join(map(str, choice.offered[:20]))
        more = f" … ({len(choice.offered)})" if len(choice.offered) > 20 else ""
        print(render.plain(f"{choice.platform} of {offered}{more}: {choice.why}"))
        print(choice.found.descriptor.digest, flush=True)

    def done(self, document: dict[str, Any]) -> None:
        """What there is now."""
        if self.as_json:
            show_json(document)
        elif self.quiet:
            print(document["digest"])
        else:
            fetched = document["bytes_fetched"]
            of = "" if fetched is None else f", {amount(fetched)} of them fetched now"
            print(f"{document['destination']}: {amount(document['bytes'])}{of}")


def _pull(
    program: Skopeo,
    source: Source,
    matcher: Matcher,
    accept_any: bool,
    destination: Reference | None,
    shown: _Shown,
) -> None:
    choice = images.choose_image(source, matcher, accept_any)
    if destination is None:
        destination = images.storage_of(
            source.reference, choice, lambda name: shutil.which(name) is not None
        )
    shown.chosen(choice)
    with watching(_name(choice), shown.nothing) as watcher:
        pulled = images.pull(program, source, choice, destination, watcher)
    shown.done(_document(source, choice) | _result(pulled))


def _unpack(
    program: Skopeo,
    source: Source,
    matcher: Matcher,
    accept_any: bool,
    directory: Path,
    shown: _Shown,
) -> None:
    where = directory.absolute()
    place = Path(os.path.realpath(directory))  # what a symbolic link names is made
    require_makeable(place)
    choice = images.choose_image(source, matcher, accept_any)
    shown.chosen(choice)
    with cache.opened(cache.cache_directory(os.environ, os.geteuid() == 0)) as layout:
        with watching(_name(choice), shown.nothing) as watcher:
            pulled = images.receive(program, source, choice, layout, watcher)
        cache.used(layout, pulled.descriptor)
        with watching({pulled.descriptor.digest: "unpacking"}, shown.nothing) as watcher:
            watcher.begin(pulled.descriptor, 0)
            unpack_image(
                layout, pulled.descriptor, source.reference, place, choice.platform, accept_any
            )
            watcher.end()
    shown.done(_document(source, choice) | _result(pulled) | {"destination": str(where)})


def _pull_all(program: Skopeo, source: Source, destination: Reference, shown: _Shown) -> None:
    top = source.top()
    there = images.all_of(source, top)
    names = {
        entry.descriptor.digest: str(entry.platform)
        for entry in (there.images if there else ())
        if entry.platform
    }
    with watching(names, shown.nothing) as watcher:
        pulled = images.pull_all(program, source, top, destination, watcher)
    offered = [str(each) for each in select.platforms(there)] if there else []
    shown.done(
        {
            "reference": str(source.reference),
            "platform": None,
            "digest": top.descriptor.digest,
            "why": "all of them",
            "offered": offered,
        }
        | _result(pulled)
    )


def _name(choice: select.Choice) -> dict[str, str]:
    return {choice.found.descriptor.digest: str(choice.platform)}


def _document(source: Source, choice: select.Choice) -> dict[str, Any]:
    return {
        "reference": str(source.reference),
        "platform": str(choice.platform),
        "digest": choice.found.descriptor.digest,
        "why": choice.why,
        "offered": [str(each) for each in choice.offered],
    }


def _result(pulled: images.Pulled) -> dict[str, Any]:
    return {
        "destination": str(pulled.destination),
        "stored": pulled.descriptor.digest,
        "bytes": pulled.size,
        "bytes_fetched": pulled.fetched,
    }
