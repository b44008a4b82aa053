"""One tag for four platforms, built and pushed by maid: what everybody else's programs make of it.

skopeo and buildah of this machine, podman 5.4, buildah 1.39, skopeo and Docker 26 of Debian 13 in a
room of their own (scripts/lib/engines.py). Each has to come to the right image for each platform:
what the RUN lines made on that platform is in it, and runs.
"""

import json
import os
import shutil
from collections.abc import Iterator

import bases
import pytest
from engines import Room, engine_room, rootfs
from layouts import INDEX, MANIFEST, digest_of, platform_of
from places import Place
from registry import Registry

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can build images here")

NAME, TAG = "engines/built", "1.0"
PLATFORMS = bases.MACHINES

CONTAINERFILE = """\
FROM {base}
RUN apt-get install -y /srv/hello.deb
COPY machine.c /work/
RUN gcc -O2 -Wall -o /usr/local/bin/machine /work/machine.c && machine >/work/machine
CMD ["machine"]
"""

SOURCE = """\
#include <stdio.h>
#include <sys/utsname.h>

int main(void)
{
	struct utsname name;

	uname(&name);
	puts(name.machine);
	return 0;
}
"""


@pytest.fixture(scope="module")
def built(place: Place, registry: Registry, debian: str) -> str:
    """The reference of what maid has built and pushed."""
    reference = f"{registry.address}/{NAME}:{TAG}"
    context = place.context(CONTAINERFILE.format(base=debian), **{"machine.c": SOURCE})
    done = place.maid(
        *("build", "--platform", ",".join(PLATFORMS), "--tag", reference, "--push", context),
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return reference


@pytest.fixture(scope="module")
def room(
    tmp_path_factory: pytest.TempPathFactory, registry: Registry, built: str
) -> Iterator[Room]:
    """Engines of Debian 13, where the foreign platforms run, and the registry needs no TLS."""
    directory = tmp_path_factory.mktemp("room")
    tree = rootfs("debian-13-engines")
    state = directory.with_name("state")
    with engine_room(directory, "aarch64", "arm", "riscv64", tree=tree, state=state) as made:
        trust = f'[[registry]]\nlocation = "{registry.address}"\ninsecure = true\n'
        made.outside("/etc/containers/registries.conf").write_text(trust)
        yield made
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def docker(room: Room) -> Iterator[Room]:
    """The room, with Docker running; anew for each test, as threads of dockerd's that have made a
    container's network cannot return to the machine's from the room, and reach nothing there."""
    with room.docker():
        yield room


def digest(registry: Registry, platform: str) -> str:
    """The digest of the index's entry for a platform."""
    entries = registry.document(NAME, TAG)["manifests"]
    [found] = [each["digest"] for each in entries if each["platform"] == platform_of(platform)]
    assert isinstance(found, str)
    return found


def platform_in(config: dict[str, str], like: dict[str, str]) -> dict[str, str]:
    """What an image's configuration says of the members that a platform has."""
    return {name: config.get(name, "") for name in like}


def says(output: str, platform: str) -> None:
    """What ran says, in its last line, that it is of this platform's machine."""
    assert output.splitlines()[-1] == PLATFORMS[platform], output


RUN = "machine | diff - /work/machine >&2 && hello >&2 && grep -q {platform} /platform && machine"
"""What runs in a container: what was compiled says where it is, as it did when it was built."""


def script(platform: str) -> tuple[str, str, str]:
    return ("sh", "-c", RUN.format(platform=platform))


def test_the_tag_is_an_index_of_the_four_platforms(registry: Registry, built: str) -> None:
    index = registry.document(NAME, TAG)
    assert index["mediaType"] == INDEX
    found = [each["platform"] for each in index["manifests"]]
    assert found == [platform_of(platform) for platform in PLATFORMS]
    for each in index["manifests"]:
        data = registry.manifest(NAME, each["digest"])
        assert data is not None and len(data) == each["size"]
        manifest = json.loads(data)
        assert each["mediaType"] == manifest["mediaType"] == MANIFEST
        config = json.loads(registry.blob(NAME, manifest["config"]["digest"]) or b"{}")
        assert platform_in(config, each["platform"]) == each["platform"]
        for layer in manifest["layers"]:
            content = registry.blob(NAME, layer["digest"]) or b""
            assert (len(content), digest_of(content)) == (layer["size"], layer["digest"])


@pytest.mark.parametrize("where", ["here", "Debian 13"])
@pytest.mark.parametrize("platform", PLATFORMS)
def test_skopeo_inspects_the_right_image(
    request: pytest.FixtureRequest,
    place: Place,
    registry: Registry,
    built: str,
    platform: str,
    where: str,
) -> None:
    wanted = platform_of(platform)
    options = [f"--override-arch={wanted['architecture']}"]
    if "variant" in wanted:
        options.append(f"--override-variant={wanted['variant']}")
    command = ("skopeo", *options, "inspect", "--config", f"docker://{built}")
    if where == "here":
        output = place.run(*command).stdout
    else:
        output = request.getfixturevalue("room").run(*command)
    config = json.loads(output)
    assert platform_in(config, wanted) == wanted
    assert f"PLATFORM={platform}" in config["config"]["Env"]


@pytest.mark.parametrize("platform", PLATFORMS)
def test_podman_pulls_and_runs_the_right_image(
    room: Room, registry: Registry, built: str, platform: str
) -> None:
    room.run("podman", "pull", "--quiet", f"--platform={platform}", built)
    about = json.loads(room.run("podman", "image", "inspect", built))[0]
    assert about["Architecture"] == platform_of(platform)["architecture"]
    assert about["Digest"] == digest(registry, platform)
    ran = room.run(
        *("podman", "run", "--rm", "--network=none", "--cgroups=disabled"),
        *("--pull=never", f"--platform={platform}", built, *script(platform)),
    )
    says(ran, platform)
    room.run("podman", "rmi", "--force", built)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_buildah_starts_from_and_runs_the_right_image(
    room: Room, built: str, platform: str
) -> None:
    container = room.run("buildah", "from", "--quiet", f"--platform={platform}", built)
    ran = room.run(
        *("buildah", "run", "--isolation=oci", "--network=none", container, "--"),
        *script(platform),
    )
    says(ran, platform)
    room.run("buildah", "rm", container)


@pytest.mark.parametrize("platform", PLATFORMS)
def test_docker_pulls_and_runs_the_right_image(
    docker: Room, registry: Registry, built: str, platform: str
) -> None:
    docker.run("docker", "pull", "--quiet", f"--platform={platform}", built)
    about = json.loads(docker.run("docker", "image", "inspect", built))[0]
    wanted = platform_of(platform)
    assert about["Architecture"] == wanted["architecture"]
    assert about.get("Variant", "") == wanted.get("variant", "")
    manifest = registry.document(NAME, digest(registry, platform))
    assert about["Id"] == manifest["config"]["digest"]
    ran = docker.run(
        *("docker", "run", "--rm", "--network=none", "--pull=never", f"--platform={platform}"),
        *(built, *script(platform)),
    )
    says(ran, platform)
    docker.run("docker", "rmi", "--force", built)
