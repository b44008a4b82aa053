"""`maid build`: the options, the result for people and programs, and the end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from maid.cli import render
from maid.cli.building import show_failure, watching
from maid.cli.common import exit_with, show_json, socket_path
from maid.cli.registry import (
    AuthfileOption,
    CertDirOption,
    CredsOption,
    VerifyOption,
    access,
)
from maid.errors import MaidError
from maid.images.build import Ended, Outcome, Publishing
from maid.images.build import build as build_images
from maid.images.build_request import MAX_CONTAINERFILE, Request, containerfile_text, plan
from maid.images.references import parse_reference

_Texts = Optional[list[str]]  # noqa: UP045


def build(
    context: Annotated[
        Path, typer.Argument(metavar="CONTEXT", help="The directory with what is copied.")
    ] = Path("."),
    platform: Annotated[
        _Texts,
        typer.Option(
            "--platform", help="What to build for; this machine's if left out.", metavar="P,P…"
        ),
    ] = None,
    tag: Annotated[
        _Texts, typer.Option("--tag", "-t", help="The result's name.", metavar="NAME:TAG")
    ] = None,
    file: Annotated[
        str,
        typer.Option(
            "--file", "-f", help="The Containerfile; - is standard input.", metavar="FILE"
        ),
    ] = "",
    build_arg: Annotated[
        _Texts, typer.Option(help="A value for an ARG.", metavar="NAME[=VALUE]")
    ] = None,
    target: Annotated[str, typer.Option(help="The stage to build.", metavar="STAGE")] = "",
    label: Annotated[
        _Texts, typer.Option(help="A label of the images.", metavar="NAME=VALUE")
    ] = None,
    annotation: Annotated[
        _Texts, typer.Option(help="Of the index and its manifests.", metavar="NAME=VALUE")
    ] = None,
    secret: Annotated[
        _Texts, typer.Option(help="For RUN --mount=type=secret.", metavar="id=ID,src=FILE")
    ] = None,
    ssh: Annotated[
        _Texts, typer.Option(help="For RUN --mount=type=ssh.", metavar="default|ID=SOCKET")
    ] = None,
    build_context: Annotated[
        _Texts, typer.Option(help="Another context, by name.", metavar="NAME=VALUE")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Run every step, cached or not.")
    ] = False,
    pull: Annotated[
        bool, typer.Option("--pull", help="Fetch base images even if they are the same.")
    ] = False,
    network: Annotated[
        str,
        typer.Option(help="Of RUN lines; host if it is left out.", metavar="host|none"),
    ] = "",
    output: Annotated[
        str, typer.Option("--output", "-o", help="Write an OCI layout.", metavar="oci:DIR[:TAG]")
    ] = "",
    push: Annotated[bool, typer.Option("--push", help="Push to the tags' registry.")] = False,
    jobs: Annotated[
        int,
        typer.Option(
            min=0,
            help="Platforms at once; by cores and memory (2 GiB each) if it is left out.",
            metavar="N",
            show_default=False,
        ),
    ] = 0,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Build the others when one fails.")
    ] = False,
    form: Annotated[
        str, typer.Option("--format", help="Of the documents.", metavar="oci|docker")
    ] = "oci",
    index: Annotated[
        bool, typer.Option("--index", help="Make an index for a single platform, too.")
    ] = False,
    accelerate: Annotated[
        bool,
        typer.Option(
            "--accelerate/--no-accelerate",
            help="Native tools in foreign platforms' steps, where the store has them.",
        ),
    ] = True,
    authfile: AuthfileOption = "",
    creds: CredsOption = "",
    cert_dir: CertDirOption = "",
    tls_verify: VerifyOption = "",
    root: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(envvar="MAID_BUILD_ROOT", help="Where layers are cached.", metavar="DIR"),
    ] = None,
    log_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Where each platform's log goes.", metavar="DIR"),
    ] = None,
    iidfile: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the result's digest to FILE.", metavar="FILE"),
    ] = None,
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines instead of a table on a terminal.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the digest, and nothing else.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document (docs/json.md).")
    ] = False,
) -> None:
    """Build CONTEXT for each platform, and make one image of it for all.

    Every platform is executed once before anything is built. Without --push and --output the
    result goes where podman and buildah keep their images. Exit status 1: a build failed and
    nothing was published; what was built is cached. 3: a platform cannot be executed here."""
    request = Request(
        context=context,
        platforms=tuple(platform or ()),
        tags=tuple(tag or ()),
        file=file,
        build_args=tuple(build_arg or ()),
        target=target,
        labels=tuple(label or ()),
        annotations=tuple(annotation or ()),
        secrets=tuple(secret or ()),
        ssh=tuple(ssh or ()),
        build_contexts=tuple(build_context or ()),
        no_cache=no_cache,
        pull=pull,
        network=network,
        output=output,
        push=push,
        jobs=jobs,
        keep_going=keep_going,
        format=form,
        index=index,
        accelerate=accelerate,
        access=access(authfile, creds, cert_dir, tls_verify, _hosts(tag or []) if push else []),
        root=root,
        log_dir=log_dir,
        epoch=os.environ.get("SOURCE_DATE_EPOCH", ""),
    )
    given = ""
    if file == "-":
        read = sys.stdin.buffer.read(MAX_CONTAINERFILE + 1)
        given = containerfile_text(read, "the Containerfile on standard input")
    planned = plan(request, given)
    publishing = Publishing()
    try:
        with _ended_by_signals(), watching(sys.stderr, quiet, plain or as_json) as watcher:
            outcome = build_images(planned, socket_path(), watcher, publishing)
    except Ended as ended:
        print(f"maid: {_end(publishing)}", file=sys.stderr)
        exit_with(ended.status)
    _show(outcome, quiet, as_json)
    if outcome.descriptor and iidfile is not None:
        _write(iidfile, f"{_identity(outcome)}\n")
    exit_with(0 if outcome.descriptor else 1)


def _hosts(tags: list[str]) -> set[str]:
    """The registries that the tags are in."""
    return {parse_reference(each).host for each in tags}


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Ctrl-C and what ends a service end the build, and everything of it: Ended. A second signal
    ends what that takes, too, and a third one this process as it is."""
    came = 0
    is_over = False

    def end(number: int, _frame: Any) -> None:
        nonlocal came
        if is_over:
            return  # there is a result, and it is told in a moment
        came += 1
        if came > 1:
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_DFL)
        raise Ended(128 + number)

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        for number, handler in before.items():
            if number != signal.SIGHUP or handler != signal.SIG_IGN:  # nohup(1)
                signal.signal(number, end)
        yield
    finally:
        is_over = True
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(publishing: Publishing) -> str:
    """What can be said where a signal has ended it."""
    names = ", ".join(publishing.begun)
    if publishing.done:
        return f"ended; it was published before that: {names}"
    if not publishing.begun:
        return "ended; nothing was published"
    return f"ended while it was published: maid index inspect shows what {names} is now"


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise MaidError(f"{path} cannot be written: {error.strerror}") from error


def _show(outcome: Outcome, quiet: bool, as_json: bool) -> None:
    stream = sys.stderr
    for warning in () if quiet else outcome.warnings:
        print(f"{render.paint('!', 'warning', stream)} {warning}", file=stream)
    for result in outcome.results:
        if result in outcome.failed:
            show_failure(result.progress, result.hints)
        elif not quiet:
            for warning in result.warnings:
                mark = render.paint("!", "warning", stream)
                text = f"{result.progress.platform}: {render.plain(warning)}"
                print(f"{mark} {text}", file=stream)
    if as_json:
        show_json(document(outcome))
        return
    if outcome.descriptor is None:
        names = ", ".join(result.progress.platform for result in outcome.failed)
        mark = render.paint("maid:", "problem", stream)
        print(f"{mark} nothing was published: {names} failed", file=stream)
    elif quiet or not outcome.names:
        print(_identity(outcome))
    else:
        for name in outcome.names:
            print(f"{name} {outcome.descriptor.digest}")


def _identity(outcome: Outcome) -> str:
    """What --quiet and --iidfile give: the digest, or the id of what has no name and is found by
    that alone."""
    assert outcome.descriptor is not None
    return outcome.descriptor.digest if outcome.names else outcome.id or outcome.descriptor.digest


def document(outcome: Outcome) -> dict[str, Any]:
    """What --json prints (docs/json.md)."""
    descriptor = outcome.descriptor
    return {
        "published": descriptor is not None,
        "names": list(outcome.names),
        "id": outcome.id or None,
        "warnings": list(outcome.warnings),
        "digest": descriptor.digest if descriptor else None,
        "media_type": descriptor.mediaType if descriptor else None,
        "jobs": outcome.jobs,
        "isolation": outcome.surroundings.runtime.isolation,
        "runtime": outcome.surroundings.runtime.name or None,
        "platforms": [
            {
                "platform": each.progress.platform,
                "state": each.progress.state.value,
                "native": each.target.is_native,
                "accelerated": each.progress.accelerated,
                "not_accelerated": each.progress.not_accelerated or None,
                "digest": each.descriptor.digest if each.descriptor else None,
                "seconds": round(each.progress.seconds, 3),
                "steps": each.progress.steps,
                "cached": each.progress.cached,
                "step": str(each.progress.step) if each.progress.step else None,
                "error": each.progress.error or None,
                "last_lines": list(each.progress.tail) if each in outcome.failed else [],
                "log": each.progress.log,
                "warnings": each.warnings,
                "hints": each.hints,
            }
            for each in outcome.results
        ],
    }
