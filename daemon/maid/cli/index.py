"""`maid index …`: image indexes in registries and OCI layouts. What they come to is done in
maid.images; here are the options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Optional

import typer

from maid import platforms
from maid.cli import look as shown
from maid.cli.common import Command, show_json
from maid.cli.registry import AuthfileOption, CertDirOption, CredsOption, VerifyOption, skopeo
from maid.errors import UsageError
from maid.images import change, edit
from maid.images.index import DOCKER_LIST, Descriptor, Index
from maid.images.references import LAYOUT, REGISTRY, Reference, parse_reference
from maid.images.skopeo import Skopeo
from maid.images.sources import open_source

index = typer.Typer(name="index", rich_markup_mode=None)

_Texts = Optional[list[str]]  # noqa: UP045
ReferenceArgument = Annotated[
    str, typer.Argument(metavar="REF", help="registry.example/app:1.0, or oci:DIR:TAG.")
]
SourcesArgument = Annotated[
    list[str],
    typer.Argument(metavar="SRC...", help="Indexes and images, wherever skopeo finds them."),
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print the document instead of writing it.")
]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Of two images for a platform take the later one.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document (docs/json.md).")]


@index.command(cls=Command, short_help="Show what a reference stands for.")
def inspect(
    reference: ReferenceArgument,
    platform: Annotated[
        str, typer.Option(help="Mark what maid pull would choose for it.", metavar="P")
    ] = "",
    strict: Annotated[
        bool, typer.Option("--strict", help="With --platform: nothing else that would do.")
    ] = False,
    size: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--size/--no-size",
            help="How large the images are; left out: where that is quick.",
            show_default=False,
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="Also attestations, and what is no image.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="The document as it is stored; with --platform the image's manifest."
        ),
    ] = False,
    authfile: AuthfileOption = "",
    creds: CredsOption = "",
    cert_dir: CertDirOption = "",
    tls_verify: VerifyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Show what a reference stands for: the images of an index with their platforms, how many
    attestations each has, and the bytes to fetch for it. Exit status 3: nothing fits --platform."""
    if raw and as_json:
        raise UsageError("--raw and --json are two things", "one after the other")
    if strict and not platform:
        raise UsageError("--strict is about a platform", "--platform P")
    matcher = None
    if platform:
        wanted = platforms.parse(platform)
        matcher = platforms.only_strict(wanted) if strict else platforms.only(wanted)
    named = parse_reference(reference)
    program = skopeo(authfile, creds, cert_dir, tls_verify, [named])
    with open_source(named, program) as source:
        if raw:
            shown.raw(source, matcher)
        else:
            shown.show(source, matcher, size, everything, as_json)


@index.command(cls=Command, short_help="Make an index of images and indexes.")
def create(
    sources: SourcesArgument,
    tag: Annotated[
        list[str],
        typer.Option("--tag", "-t", help="The index's name; may be repeated.", metavar="REF"),
    ],
    annotation: Annotated[
        _Texts,
        typer.Option(
            help="For the index, or the entry of a platform; may be repeated.",
            metavar="[PLATFORM:]K=V",
        ),
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Put them after what REF has already.")
    ] = False,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
    authfile: AuthfileOption = "",
    creds: CredsOption = "",
    cert_dir: CertDirOption = "",
    tls_verify: VerifyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make an index of all that the sources have, attestations too, and copy what it names to where
    it is written. An index alone is copied as it is."""
    targets = [_target(each) for each in tag]
    if append and len(targets) > 1:
        raise UsageError("--append goes with one name", "one after the other")
    annotations: dict[str, dict[str, str]] = {}
    for text in annotation or []:
        wanted, name, value = _annotation(text)
        annotations.setdefault(wanted, {})[name] = value
    parsed = [parse_reference(each) for each in sources]
    program = skopeo(authfile, creds, cert_dir, tls_verify, [*targets, *parsed])
    with change.created(
        program,
        parsed,
        annotations,
        onto=targets[0] if append else None,
        replacing=replace,
    ) as prepared:
        _write(program, prepared, targets, dry_run, as_json)


@index.command(cls=Command, short_help="Add images to an index.")
def add(
    reference: ReferenceArgument,
    sources: SourcesArgument,
    replace: ReplaceOption = False,
    dry_run: DryRunOption = False,
    authfile: AuthfileOption = "",
    creds: CredsOption = "",
    cert_dir: CertDirOption = "",
    tls_verify: VerifyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Add all that the sources have to an index that is there."""

    def added(before: Index, groups: Sequence[edit.Group]) -> Index:
        all_ = [edit.Group(reference, before.manifests), *groups]
        return edit.with_entries(before, edit.combine(all_, replace))

    target = change.named(parse_reference(reference))
    others = [parse_reference(each) for each in sources]
    program = skopeo(authfile, creds, cert_dir, tls_verify, [target, *others])
    with change.changed(program, target, added, others) as prepared:
        _write(program, prepared, [target], dry_run, as_json)


@index.command(cls=Command, short_help="Remove images from an index.")
def remove(
    reference: ReferenceArgument,
    wanted: Annotated[
        list[str], typer.Argument(metavar="PLATFORM|DIGEST...", help="What is to go.")
    ],
    dry_run: DryRunOption = False,
    authfile: AuthfileOption = "",
    creds: CredsOption = "",
    cert_dir: CertDirOption = "",
    tls_verify: VerifyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Remove images from an index, with what attests them. A platform means itself, and nothing
    that would do for it; a digest may be shortened. Exit status 3: there is no such entry."""
    target = change.named(parse_reference(reference))
    program = skopeo(authfile, creds, cert_dir, tls_verify, [target])
    with change.changed(
        program, target, lambda before, _: edit.remove(before, wanted, reference)
    ) as prepared:
        _write(program, prepared, [target], dry_run, as_json)


@index.command(cls=Command, short_help="Change what an index says.")
def annotate(
    reference: ReferenceArgument,
    words: Annotated[
        _Texts,
        typer.Argument(
            metavar="[PLATFORM|DIGEST] [K=V|K-]...",
            help="The entry, or else the index itself; annotations to set, or to take away.",
        ),
    ] = None,
    os: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--os", help="The entry's operating system.", metavar="OS"),
    ] = None,
    arch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The entry's architecture.", metavar="ARCH"),
    ] = None,
    variant: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help='The entry\'s variant; "" takes it away.', metavar="VARIANT"),
    ] = None,
    os_version: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help='The entry\'s os.version; "" takes it away.', metavar="VERSION"),
    ] = None,
    os_features: Annotated[
        _Texts,
        typer.Option(
            "--os-feature",
            help='The entry\'s os.features; may be repeated; "" takes them away.',
            metavar="FEATURE",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    authfile: AuthfileOption = "",
    creds: CredsOption = "",
    cert_dir: CertDirOption = "",
    tls_verify: VerifyOption = "",
    as_json: JsonOption = False,
) -> None:
    """Change what an index says of itself or of an entry: annotations, and the entry's platform."""
    wanted, values, removed = _words(words or [])
    features = None if os_features is None else tuple(filter(None, os_features))
    changes = edit.Changes(values, removed, os, arch, variant, os_version, features)
    if not values and not removed and not changes.platform:
        raise UsageError("nothing is to be changed", "K=V sets an annotation, K- takes it away")
    target = change.named(parse_reference(reference))
    program = skopeo(authfile, creds, cert_dir, tls_verify, [target])
    with change.changed(
        program, target, lambda before, _: edit.annotate(before, wanted, changes, reference)
    ) as prepared:
        _write(program, prepared, [target], dry_run, as_json)


def _target(text: str) -> Reference:
    reference = parse_reference(text)
    if reference.transport not in (REGISTRY, LAYOUT) or reference.digest:
        raise UsageError(
            f"{text}: an index is written under a tag, in a registry or an OCI layout",
            "for example registry.example/app:1.0, or oci:DIR:TAG",
        )
    return reference


def _annotation(text: str) -> tuple[str, str, str]:
    """Platform ("" for the index), name and value. A name may have a colon; what stands before it
    is a platform where it is one."""
    name, equals, value = text.partition("=")
    wanted, colon, rest = name.partition(":")
    if colon:
        try:
            platforms.parse(wanted)
            name = rest
        except platforms.PlatformError:
            colon = ""
    if not equals or not name:
        raise UsageError(f"{text!r} is no annotation", "K=V, or PLATFORM:K=V")
    return wanted if colon else "", name, value


def _words(words: Sequence[str]) -> tuple[str, dict[str, str], tuple[str, ...]]:
    """The entry that is meant, the annotations to set and those to take away."""
    wanted = ""
    if words and "=" not in words[0] and not words[0].endswith("-"):
        wanted, *words = words
    values, removed = {}, []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name:
            values[name] = value
        elif not equals and len(word) > 1 and word.endswith("-"):
            removed.append(word[:-1])
        else:
            raise UsageError(f"{word!r} is no annotation", "K=V sets one, K- takes it away")
    return wanted, values, tuple(removed)


def _write(
    program: Skopeo,
    prepared: change.Prepared | None,
    targets: Sequence[Reference],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Write the index, or show what would be written."""
    if prepared is None:
        with open_source(targets[0], program) as source:
            written = [source.top().descriptor]
    elif dry_run:
        _dry(prepared, targets, as_json)
        return
    else:
        written = change.write(program, prepared, targets)
    if as_json:
        _show_json(prepared is not None, dry_run, targets, written)
        return
    for reference, done in zip(targets, written, strict=True):
        print(f"{reference}: {done.digest}{'' if prepared else ', as it was'}")


def _dry(prepared: change.Prepared, targets: Sequence[Reference], as_json: bool) -> None:
    top = prepared.top
    if as_json:
        descriptors = [top.descriptor] * len(targets)
        _show_json(False, True, targets, descriptors, top.data.decode(errors="replace"))
        return
    sys.stdout.buffer.write(top.data + b"\n")
    sys.stdout.flush()
    for reference in targets:
        print(f"{reference} would be {top.descriptor.digest}", file=sys.stderr)
    if top.descriptor.mediaType == DOCKER_LIST and any(t.transport == LAYOUT for t in targets):
        print(
            "in an OCI layout Docker's documents become OCI's, with other digests", file=sys.stderr
        )


def _show_json(
    written: bool,
    dry_run: bool,
    targets: Sequence[Reference],
    descriptors: Sequence[Descriptor],
    document: str | None = None,
) -> None:
    references = [
        {"reference": str(each), "digest": done.digest, "media_type": done.mediaType}
        for each, done in zip(targets, descriptors, strict=True)
    ]
    show_json(
        {"written": written, "dry_run": dry_run, "references": references, "document": document}
    )
