"""buildah, unmodified: it builds and runs foreign platforms through maid's entries."""

import shutil
from pathlib import Path

import pytest
from engines import engine_room, rootfs

pytestmark = pytest.mark.skipif(shutil.which("buildah") is None, reason="there is no buildah")

CONTAINERFILE = """
FROM scratch
COPY tree /
RUN uname -m > /machine; env > /environment
"""


def test_a_foreign_working_container_runs_its_programs(tmp_path: Path) -> None:
    with engine_room(tmp_path, "aarch64", "s390x") as room:
        for platform, machine in (("arm64", "aarch64"), ("s390x", "s390x")):
            container = room.run("buildah", "from", "--arch", platform, "scratch")
            room.run("buildah", "copy", container, rootfs(f"busybox-{platform}"), "/")
            found = room.run(
                *("buildah", "run", "--isolation", "chroot", container, "/bin/uname", "-m")
            )
            assert found == machine


def test_a_containerfile_without_a_word_of_maid_builds(tmp_path: Path) -> None:
    context = tmp_path / "context"
    shutil.copytree(rootfs("busybox-arm64"), context / "tree", symlinks=True)
    (context / "Containerfile").write_text(CONTAINERFILE)
    with engine_room(tmp_path, "aarch64") as room:
        room.run(
            *("buildah", "build", "--platform", "linux/arm64", "--isolation", "chroot"),
            *("--tag", "localhost/built", context),
        )
        container = room.run("buildah", "from", "localhost/built")
        root = Path(room.run("buildah", "mount", container))
        assert (root / "machine").read_text() == "aarch64\n"
        # The CPU model is in the interpreter: nothing leaks into anybody's environment.
        environment = (root / "environment").read_text()
        assert "QEMU" not in environment and "maid" not in environment.replace(str(tmp_path), "")
        config = room.run("buildah", "inspect", "--format", "{{.OCIv1.Architecture}}", container)
        assert config == "arm64"


def test_without_maid_the_same_build_fails(tmp_path: Path) -> None:
    """The control: what the tests above see is maid's doing."""
    with engine_room(tmp_path, "s390x") as room:
        container = room.run("buildah", "from", "--arch", "arm64", "scratch")
        room.run("buildah", "copy", container, rootfs("busybox-arm64"), "/")
        command = ("buildah", "run", "--isolation", "chroot", container, "/bin/uname", "-m")
        assert room.run(*command, check=False) != "aarch64"
