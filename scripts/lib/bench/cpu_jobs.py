"""The jobs of `scripts/bench cpu`: programs of a foreign Debian tree, each run directly by an
emulator with a CPU model.

A tree is one of scripts/rootfs' `programs-*`: gcc, libc and Python, unpacked and never configured.
The emulator is started inside it (chroot; -L does not redirect statx, which 32-bit programs use),
by its descriptor and with the program's path, so no binfmt entry is involved and even the machine's
own architecture can be measured. The programs start no others: the compiler proper, the assembler
and the linker are run one by one. Root only.
"""

import os
import resource
import shlex
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

TIME_LIMIT = 120.0
VECTOR = Path(__file__).with_name("vector.c")

# A bit of everything that a compiler has to do; 10 functions, no header.
_FUNCTION = """
struct s{n} {{ int key, count; struct s{n} *next; double weight; char name[{n} + 8]; }};
static int compare{n}(const struct s{n} *a, const struct s{n} *b)
{{
    for (int i = 0; i < {n} + 8; i++)
        if (a->name[i] != b->name[i])
            return a->name[i] < b->name[i] ? -1 : 1;
    return a->weight < b->weight ? -{n} : a->weight > b->weight;
}}
struct s{n} *insert{n}(struct s{n} *list, struct s{n} *new, int *depth)
{{
    struct s{n} **at = &list;
    while (*at && compare{n}(*at, new) < 0) {{
        switch ((*at)->key % 7) {{
        case 0: (*at)->count += {n}; break;
        case 1: (*at)->weight *= 1.5; /* fall through */
        case 2: *depth += (*at)->count >> 3; break;
        case 5: new->key ^= (*at)->key * {n}; break;
        default: new->count = new->count / 3 + 1;
        }}
        at = &(*at)->next;
    }}
    new->next = *at;
    return *at = new, list;
}}
"""
SOURCE = "".join(_FUNCTION.format(n=n) for n in range(1, 11)).encode()

LOOP = "x = 0\nfor i in range({rounds}):\n    x = (x * 31 + i) & 0xffffffff\nprint(x)"
HASH = "import hashlib as h\nprint(h.sha256(b'maid' * {size}).hexdigest())"
# What tells a CPU that starts programs and then computes something else.
SELF_TEST = (
    "import hashlib as h, math, struct, zlib\n"
    "t = bytes(range(256)) * 99\n"
    "print(h.sha512(t).hexdigest(), h.sha1(t).hexdigest(), zlib.crc32(t), zlib.adler32(t))\n"
    "print(t.find(b'\\xff\\x00\\x02'), t[::-1].count(b'\\x01'), t.hex()[::997], math.pi ** 12.5)\n"
    "print(math.fsum(math.sin(i) / 3 for i in range(99)), 7 ** 77 % 10 ** 19, round(2.675, 2))\n"
    "print(struct.pack('<efd', 1.5, 1 / 3, 1e-300), repr(0.1 + 0.2), int('9' * 60) // 7)\n"
)


class Failed(Exception):
    """A program that did not end well under a model; the text says how."""


@dataclass(frozen=True)
class Emulator:
    """A QEMU program with one CPU model ("" for its default)."""

    path: Path
    cpu: str
    tree: Path

    def run(self, program: str, *arguments: str, stdin: bytes = b"") -> tuple[float, bytes]:
        """Run a program of the tree, named as inside it: its user and system seconds, and what it
        wrote.

        Raises Failed where it is killed, exits with anything but 0, or takes two minutes.
        """
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = self._start([program, *arguments], stdin)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip().split("\n")
            raise Failed(f"status {done.returncode}: {said[0][:120]}")
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return seconds, done.stdout

    def _start(self, command: list[str], stdin: bytes) -> "subprocess.CompletedProcess[bytes]":
        environment = {"QEMU_CPU": self.cpu} if self.cpu else {}
        with open(self.path, "rb") as emulator:

            def enter() -> None:
                os.chroot(self.tree)
                os.chdir("/")
                os.execve(emulator.fileno(), [str(self.path), *command], environment)

            try:
                return subprocess.run(
                    [str(self.path)],
                    input=stdin,
                    capture_output=True,
                    pass_fds=(emulator.fileno(),),
                    preexec_fn=enter,
                    timeout=TIME_LIMIT,
                )
            except subprocess.TimeoutExpired:
                raise Failed(f"no end after {TIME_LIMIT:.0f} s") from None

    def python(self, code: str) -> tuple[float, bytes]:
        """Run Python code, isolated and without compiled modules written."""
        return self.run("/usr/bin/python3", "-I", "-B", "-c", code)

    def commands(self, *arguments: str) -> list[list[str]]:
        """The commands that the tree's gcc would execute for `arguments` (gcc -###)."""
        said = self._start(["/usr/bin/gcc", "-###", *arguments], b"").stderr.decode()
        return [shlex.split(line) for line in said.splitlines() if line.startswith(" ")]

    def compile(self, source: bytes, *options: str) -> tuple[float, bytes]:
        """Compile C source with the compiler proper, as gcc would start it: the assembler text."""
        [command] = self.commands("-S", *options, "-x", "c", "-", "-o", "-")
        return self.run(*command, stdin=source)

    def find(self, pattern: str) -> str:
        """The path inside the tree of the one file that matches."""
        [found] = self.tree.glob(pattern)
        return f"/{found.relative_to(self.tree)}"


def build_vector(emulator: Emulator, directory: str) -> str:
    """Compile, assemble and link vector.c with the tree's own tools: the path of a static program
    in `directory`, both as inside the tree."""
    program, text, code = (f"{directory}/{name}" for name in ("vector", "vector.s", "vector.o"))
    _, assembler = emulator.compile(VECTOR.read_bytes(), "-O3")
    (emulator.tree / text[1:]).write_bytes(assembler)
    [[_, *assemble]] = emulator.commands("-c", text, "-o", code)
    emulator.run(emulator.find("usr/bin/*-as"), *assemble)
    [[_, *link]] = emulator.commands("-static", code, "-o", program)
    at = link.index("-plugin")
    del link[at : at + 2]  # the plug-in asks the gcc driver, which starts programs
    link = [word for word in link if not word.startswith("-plugin-opt")]
    emulator.run(emulator.find("usr/bin/*-ld.bfd"), *link)
    return program


Job = Callable[[Emulator], tuple[float, bytes]]


def jobs(vector: str) -> dict[str, Job]:
    """The timed jobs by name, `vector` being what `build_vector` made."""
    return {
        "compile": lambda emulator: emulator.compile(SOURCE, "-O2", "-g"),
        "python": lambda emulator: emulator.python(LOOP.format(rounds=300000)),
        "vector": lambda emulator: emulator.run(vector, "1000"),
        "sha256": lambda emulator: emulator.python(HASH.format(size=2000000)),
    }
