"""images/skopeo.py: what skopeo's last words mean, and what they do not."""

import pytest

from maid.images.references import parse_reference
from maid.images.skopeo import NotFound, PassingError, SkopeoError, explain


def said(words: str) -> str:
    return f'time="2026-01-01T00:00:00Z" level=fatal msg="{words}"\n'


MISSING = "reading manifest {tag} in localhost:5000/{name}: manifest unknown: manifest unknown"


@pytest.mark.parametrize("name", ["app", "policy", "certificate-x", "denied", "x509", "500"])
@pytest.mark.parametrize("tag", ["1.0", "500", "503", "401"])
def test_the_references_own_words_are_no_reason(name: str, tag: str) -> None:
    reference = parse_reference(f"localhost:5000/{name}:{tag}")
    error = explain(said(MISSING.format(name=name, tag=tag)), reference)
    assert isinstance(error, NotFound)
    assert "list-tags" in error.hint


@pytest.mark.parametrize(
    ("words", "kind", "hint"),
    [
        ("received unexpected HTTP status: 500 Internal Server Error", PassingError, "fault"),
        ("received unexpected HTTP status: 503 Service Unavailable", PassingError, "fault"),
        ("toomanyrequests: slow down", SkopeoError, "limits requests"),
        ("unauthorized: authentication required", SkopeoError, "skopeo login localhost:5000"),
        (
            "errors: denied: requested access; repository does not exist or may require login",
            SkopeoError,
            "skopeo login",
        ),
        ("open /x: permission denied", SkopeoError, ""),
        ("http: server gave HTTP response to HTTPS client", SkopeoError, "--tls-verify=false"),
        ("tls: x509: certificate signed by unknown authority", SkopeoError, "--cert-dir"),
        ("write /x: no space left on device", SkopeoError, "free some space"),
        ("dial tcp 127.0.0.1:5000: connect: connection refused", SkopeoError, "reachable"),
    ],
)
def test_reasons_have_a_way_out(words: str, kind: type[SkopeoError], hint: str) -> None:
    error = explain(said(words), parse_reference("localhost:5000/app:1"))
    assert type(error) is kind
    assert words.split(":")[0] in error.message and hint in error.hint
    assert hint or not error.hint
    assert "localhost:5000/app:1" in error.message
