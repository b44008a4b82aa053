"""maid.config: every key is typed, every mistake is named, every scope has its own places."""

from pathlib import Path

import msgspec
import pytest

from maid import config
from maid.config import Config, Network, Prefer, Scope, example, load
from maid.errors import ConfigError
from maid.platforms import COMMON, Platform, host, parse

DOCUMENTED = Path(__file__).parents[2] / "docs" / "maid.toml.example"


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "maid.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_an_empty_file_is_the_defaults(write) -> None:
    assert load(write("")) == Config()


def test_the_default_file_may_be_missing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(config, "DEFAULT", tmp_path / "none.toml")
    assert load() == Config()


def test_a_file_that_was_asked_for_may_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "none.toml")
    assert str(tmp_path / "none.toml") in caught.value.message
    assert "does not exist" in caught.value.message
    assert "MAID_CONFIG" in caught.value.hint
    assert caught.value.exit_status == 2


def test_every_key_is_read(write) -> None:
    loaded = load(
        write(
            """
            [emulation]
            platforms = ["linux/arm64", "riscv64", "s390x"]
            exclude = ["linux/arm/v5"]
            interpreters = ["/opt/qemu/bin", "/opt/box64"]
            prefer = "own"
            ready = ["linux/arm64"]
            probe_timeout = 2
            [emulation.target.aarch64]
            enabled = false
            cpu = ""
            interpreter = "/opt/qemu-aarch64"
            credentials = false
            [steps]
            runtime = "/opt/crun"
            network = "none"
            max_per_uid = 3
            max_queued_per_uid = 0
            timeout = 60.5
            [socket]
            path = "/run/other/io.maid"
            group = "docker"
            max_message_bytes = 65536
            max_connections_per_uid = 2
            max_requests_per_connection = 1
            [paths]
            runtime = "/run/other"
            state = "/var/other"
            [log]
            level = "debug"
            """
        )
    )
    emulation = loaded.emulation
    assert emulation.platforms == ("linux/arm64", "riscv64", "s390x")
    assert emulation.exclude == ("linux/arm/v5",)
    assert emulation.interpreters == (Path("/opt/qemu/bin"), Path("/opt/box64"))
    assert emulation.prefer is Prefer.OWN
    assert emulation.ready == ("linux/arm64",)
    assert emulation.probe_timeout == 2.0
    settings = emulation.settings("aarch64")
    assert (settings.enabled, settings.cpu, settings.credentials) == (False, "", False)
    assert settings.interpreter == Path("/opt/qemu-aarch64")
    assert emulation.settings("riscv64") == config.TargetSettings()
    steps = loaded.steps
    assert (steps.runtime, steps.network, steps.timeout) == ("/opt/crun", Network.NONE, 60.5)
    assert (steps.max_per_uid, steps.max_queued_per_uid) == (3, 0)
    socket = loaded.socket
    assert (socket.path, socket.group) == (Path("/run/other/io.maid"), "docker")
    assert socket.max_message_bytes == 65536
    assert (socket.max_connections_per_uid, socket.max_requests_per_connection) == (2, 1)
    assert loaded.paths == config.Paths(runtime=Path("/run/other"), state=Path("/var/other"))
    assert loaded.log.level is config.Level.DEBUG


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("[emulation]\nplatfroms = []", "emulation.platfroms", "did you mean platforms?"),
        ("[emulaton]", "emulaton", "did you mean emulation?"),
        ("[x]", "x", "one of emulation, steps, acceleration, socket, paths, log"),
        ("emulation = 3", "emulation", "must be a table, [emulation]"),
        ("[emulation]\nplatforms = 'linux/arm64'", "emulation.platforms", "a list, not a text"),
        ("[emulation]\nplatforms = [3]", "emulation.platforms", "not a whole number (item 1)"),
        ("[emulation]\nplatforms = ['linux/arm46']", "emulation.platforms", "linux/arm64?"),
        ("[emulation]\nplatforms = ['windows/amd64']", "emulation.platforms", "no platform that"),
        ("[emulation]\nplatforms = ['linux/arm/v9']", "emulation.platforms", "no platform that"),
        ("[emulation]\nplatforms = ['aarch46']", "emulation.platforms", "aarch46"),
        ("[emulation]\nexclude = ['*']", "emulation.exclude", "no wildcards"),
        ("[emulation]\nready = ['linux/&']", "emulation.ready", "is not a platform"),
        ("[emulation]\ninterpreters = ['qemu']", "emulation.interpreters", "absolute path"),
        ("[emulation]\nprefer = 'adapt'", "emulation.prefer", "did you mean adopt?"),
        ("[emulation]\nprobe_timeout = 0", "emulation.probe_timeout", "> 0.0"),
        ("[emulation]\nprobe_timeout = nan", "emulation.probe_timeout", "cannot be nan"),
        ("[emulation]\nprobe_timeout = inf", "emulation.probe_timeout", "<= 3600"),
        (
            "[emulation]\nprobe_timeout = '10s'",
            "emulation.probe_timeout",
            "a number, not a text",
        ),
        ("[emulation]\ntarget = []", "emulation.target", "[emulation.target.NAME]"),
        ("[emulation.target.aarch46]", "emulation.target.aarch46", "did you mean aarch64?"),
        ("[emulation.target]\narm = 1", "emulation.target.arm", "must be a table"),
        ("[emulation.target.arm]\ncpus = ''", "emulation.target.arm.cpus", "did you mean cpu?"),
        ("[emulation.target.arm]\ncpu = 3", "emulation.target.arm.cpu", "must be a text, not a"),
        ("[emulation.target.arm]\ncpu = '-cpu max'", "emulation.target.arm.cpu", "without -cpu"),
        ('[emulation.target.arm]\ncpu = "a\\u0000"', "emulation.target.arm.cpu", "cannot be"),
        ("[emulation.target.arm]\ninterpreter = 'x'", "emulation.target.arm.interpreter", "absol"),
        (
            "[emulation.target.arm]\nenabled = 1",
            "emulation.target.arm.enabled",
            "true or false,",
        ),
        ("[steps]\nruntime = 'docker'", "steps.runtime", "auto, crun, runc or an absolute path"),
        ("[steps]\nnetwork = 'bridge'", "steps.network", "one of none, host"),
        ("[steps]\nmax_per_uid = 0", "steps.max_per_uid", ">= 1"),
        ("[steps]\nmax_per_uid = 'x'", "steps.max_per_uid", "be a whole number, not a text"),
        ("[steps]\nmax_per_uid = true", "steps.max_per_uid", "not true or false"),
        ("[steps]\ntimeout = -1", "steps.timeout", ">= 0"),
        ("[socket]\nmax_message_bytes = 10", "socket.max_message_bytes", ">= 4096"),
        ("[socket]\ngroup = ''", "socket.group", "length >= 1"),
        ('[paths]\nstate = "/a\\u0000"', "paths.state", "absolute path"),
        ("[log]\nlevel = 'warn'", "log.level", "did you mean warning?"),
    ],
)
def test_a_mistake_is_named_with_file_key_and_way_out(write, text, key, says) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.message.startswith(f"{path}: ")
    assert key in caught.value.message
    assert says in str(caught.value)


def test_what_is_not_toml_says_where(write) -> None:
    with pytest.raises(ConfigError, match=r"not TOML: .*line 2, column 10"):
        load(write("[emulation]\nprefer = = 3"))
    with pytest.raises(ConfigError, match="not TOML"):
        load(write(b"[emulation]\nprefer = '\xff'"))


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path}: .*[Ii]s a directory"):
        load(tmp_path)


def test_a_broken_default_file_is_an_error_too(write, monkeypatch) -> None:
    monkeypatch.setattr(config, "DEFAULT", write("[steps]\nx = 1"))
    with pytest.raises(ConfigError, match=r"steps\.x"):
        load()


# Which platforms


def served(text: str, write) -> list[str]:
    emulation = load(write(f"[emulation]\n{text}")).emulation
    pairs = [("arm", v) for v in ("v5", "v6", "v7")] + [("aarch64", ""), ("mips64el", "")]
    architectures = {"arm": "arm", "aarch64": "arm64", "mips64el": "mips64le"}
    return [
        f"{target} {variant}".strip()
        for target, variant in pairs
        if emulation.serves(target, Platform("linux", architectures[target], variant))
    ] + [target for target in ("sparc", "m68k") if emulation.serves(target)]


ALL = ["arm v5", "arm v6", "arm v7", "aarch64", "mips64el", "sparc", "m68k"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ALL),
        ('exclude = ["linux/arm/v5"]', [each for each in ALL if each != "arm v5"]),
        ('exclude = ["arm"]', [each for each in ALL if "arm " not in each]),
        ('exclude = ["linux/arm"]', [each for each in ALL if each != "arm v7"]),
        ('platforms = ["linux/arm64"]', ["aarch64"]),
        ('platforms = ["arm64"]', ["aarch64"]),
        ('platforms = ["linux/arm64/v8.2"]', ["aarch64"]),
        ('platforms = ["arm"]', ["arm v5", "arm v6", "arm v7"]),
        ('platforms = ["linux/arm/v7", "sparc"]', ["arm v7", "sparc"]),
        ("platforms = []", []),
        ('platforms = ["*"]\nexclude = ["m68k", "arm"]', ["aarch64", "mips64el", "sparc"]),
        (
            "[emulation.target.arm]\nenabled = false",
            ["aarch64", "mips64el", "sparc", "m68k"],
        ),
    ],
)
def test_platforms_and_targets_are_served_by_either_name(write, text, expected) -> None:
    assert served(text, write) == expected


def test_ready_is_the_common_platforms_unless_the_file_says(write) -> None:
    emulation = load(write("")).emulation
    assert all(emulation.must_be_ready("any", platform) for platform in COMMON)
    assert not emulation.must_be_ready("ppc64", parse("linux/ppc64"))
    assert not emulation.must_be_ready("sparc")
    emulation = load(write('[emulation]\nready = ["linux/ppc64", "sparc"]')).emulation
    assert emulation.must_be_ready("ppc64", parse("linux/ppc64"))
    assert emulation.must_be_ready("sparc")
    assert not emulation.must_be_ready("aarch64", parse("linux/arm64"))
    emulation = load(write('[emulation]\nexclude = ["aarch64"]')).emulation
    assert not emulation.must_be_ready("aarch64", parse("linux/arm64"))


def test_this_machines_own_level_may_be_named(write) -> None:
    assert load(write(f'[emulation]\nready = ["{host()}"]')).emulation.ready == (str(host()),)


# Which places

RUNTIME = {"XDG_RUNTIME_DIR": "/run/user/1000", "HOME": "/home/u"}


def places(loaded: Config) -> tuple[str, str, str]:
    return str(loaded.socket.path), str(loaded.paths.runtime), str(loaded.paths.state)


def test_the_service_has_the_systems_places(write) -> None:
    assert places(load(write(""))) == ("/run/maid/io.maid", "/run/maid", "/var/lib/maid")
    assert places(load(write(""), socket=Path("/x"))) == ("/x", "/run/maid", "/var/lib/maid")


def test_a_private_daemon_of_roots_has_places_by_its_socket(write) -> None:
    first, second, default = (
        places(load(write(""), Scope.PRIVATE, socket, environ={}, uid=0))
        for socket in (Path("/tmp/a"), Path("/tmp/b"), None)
    )
    assert first[0] == "/tmp/a"
    assert default[0] == "/run/maid/private/io.maid"
    runtimes = {first[1], second[1], default[1]}
    assert len(runtimes) == 3
    assert {Path(each).parent for each in runtimes} == {Path("/run/maid/private")}
    assert {first[2], second[2], default[2]} == {"/var/lib/maid/private"}


def test_a_relative_socket_is_the_same_place_from_everywhere(write, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = load(write(""), Scope.PRIVATE, Path("s"), environ={}, uid=0)
    absolute = load(write(""), Scope.PRIVATE, tmp_path / "s", environ={}, uid=0)
    assert relative == absolute


def test_a_private_daemon_of_a_user_stays_below_the_users_directories(write) -> None:
    socket, runtime, state = places(
        load(write(""), Scope.PRIVATE, environ=RUNTIME | {"XDG_STATE_HOME": "/s"}, uid=1000)
    )
    assert (socket, state) == ("/run/user/1000/maid/io.maid", "/s/maid")
    assert runtime.startswith("/run/user/1000/maid/")
    _, _, state = places(load(write(""), Scope.PRIVATE, environ=RUNTIME, uid=1000))
    assert state == "/home/u/.local/state/maid"
    # As sudo and su leave it, and with a relative path, which the specification says to ignore.
    for environ in ({"HOME": "/home/u"}, {"HOME": "/home/u", "XDG_RUNTIME_DIR": "run"}):
        socket, _, _ = places(load(write(""), Scope.PRIVATE, environ=environ, uid=1000))
        assert socket == "/home/u/.local/state/maid/run/io.maid"
    with pytest.raises(ConfigError, match="neither XDG_STATE_HOME nor HOME"):
        load(write(""), Scope.PRIVATE, environ={}, uid=1000)


def test_a_private_daemon_does_not_touch_the_services_places(write, monkeypatch) -> None:
    path = write('[paths]\nstate = "/srv/s"\nruntime = "/srv/r"\n[socket]\npath = "/srv/socket"')
    named = places(load(path, Scope.PRIVATE, environ=RUNTIME, uid=1000))
    assert named == ("/srv/socket", "/srv/r", "/srv/s")
    monkeypatch.setattr(config, "DEFAULT", path)
    assert places(load(None, Scope.HOST)) == named
    own = places(load(None, Scope.PRIVATE, environ=RUNTIME, uid=1000))
    assert not any(place.startswith("/srv") for place in own)


# The documentation


def test_the_documented_example_is_the_codes() -> None:
    assert DOCUMENTED.read_text() == example()


def test_the_examples_defaults_are_the_defaults(write) -> None:
    lines = example().splitlines()
    defaults = "\n".join(line.removeprefix("#") for line in lines if not line.startswith("# "))
    loaded = load(write(defaults))
    assert loaded.emulation.target == {"aarch64": config.TargetSettings()}
    emulation = msgspec.structs.replace(loaded.emulation, target={})
    assert msgspec.structs.replace(loaded, emulation=emulation) == Config()


def test_the_examples_samples_are_valid_and_no_key_is_missing(write) -> None:
    lines = [line.lstrip("# ") for line in example().splitlines()]
    settings = [line for line in lines if line.startswith("[") or " = " in line]
    loaded = load(write("\n".join(settings)))
    assert loaded.emulation.ready == ("linux/amd64", "linux/arm64")
    assert loaded.emulation.settings("aarch64").cpu == "max,pauth-impdef=on"
    for section in (*(getattr(loaded, name) for name in loaded.__struct_fields__),):
        for key in set(section.__struct_fields__) - {"target"}:
            assert any(line.startswith(f"{key} = ") for line in settings), key


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"\n\na = '\xff'", "line 3 is not UTF-8"),
        (b"\na = " + b"9" * 5000, "(line 2)"),
        (b"\na = " + b"[" * 5000, "(line 2)"),
        (b'[steps]\nruntime = "/\\u0000"', "steps.runtime cannot be"),
        (b'[acceleration]\ntools = ["a", "\\u0000"]', "acceleration.tools cannot be"),
        (b'"a\\nb" = 1', "there is no key a\\nb"),
    ],
    ids=["no UTF-8", "endless digits", "endless brackets", "zero byte", "in a list", "line break"],
)
def test_whatever_is_in_the_file_is_told_in_one_line(
    tmp_path: Path, text: bytes, words: str
) -> None:
    """What the fuzzer has found (scripts/fuzz configuration)."""
    path = tmp_path / "maid.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert words in caught.value.message
    assert str(caught.value).isprintable()
