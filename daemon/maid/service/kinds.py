"""The kinds of events: what each means, and how it is known in the journal.

One table. The journal's message catalogue (units/maid.catalog) and docs/events.md are written from
it, by `python -m maid.service.describe`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of event.

    `identifier` is its MESSAGE_ID (sd_journal_print(3)), 32 hexadecimal digits, made once by
    `systemd-id128 new` and never changed; `grave`: somebody should look at it; `summary` one line;
    `meaning` what has happened; `advice` what to do, or "".
    """

    name: str
    identifier: str
    grave: bool
    summary: str
    meaning: str
    advice: str = ""


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "started",
            "a3c667a914094afe97a3ca9b08c9c43f",
            False,
            "The daemon runs",
            "The daemon has looked at the machine and serves; what it found follows as further "
            "events.",
        ),
        Kind(
            "taken up",
            "e11e5fa2e9ac4d298e9afd160407c6b4",
            False,
            "Steps of an earlier daemon go on",
            "Steps outlive the daemon: the new one found these running, waits for them and will "
            "report their ends.",
        ),
        Kind(
            "reloaded",
            "65169071bedc4044b29b8b7473a3c7ec",
            False,
            "The configuration was read again",
            "Everything but [paths] holds from now on; steps that run keep what they were "
            "started with.",
        ),
        Kind(
            "refreshed",
            "703c742c29fe4c14929ea4026958dbbc",
            False,
            "Interpreters were looked for again",
            "A directory with interpreters has changed, or somebody asked for it.",
        ),
        Kind(
            "registered",
            "d8a0ca78e5244dcc8ad3e7685d2db395",
            False,
            "An entry was registered",
            "The kernel starts this interpreter for programs of that architecture from now on.",
        ),
        Kind(
            "ready",
            "49fd64268f48435da57d75802ed1244a",
            False,
            "A platform executes",
            "A program of that architecture was executed, in an empty chroot and under a time "
            "limit, and did what it should.",
        ),
        Kind(
            "failed",
            "0cb4035e03104ed984746eb024907e58",
            True,
            "A platform no longer executes",
            "The last probe worked, this one did not. Builds for the platform fail until it is "
            "ready again.",
            "maid check PLATFORM says what the kernel answered; maid doctor says what to do.",
        ),
        Kind(
            "probe failed",
            "04b11fcecb5c4327aeaf2534ca824175",
            True,
            "A probe failed",
            "A program of that architecture was executed and did not do what it should. One "
            "failure proves nothing; it is tried again, and after three the next best "
            "interpreter serves.",
            "maid check PLATFORM; maid doctor.",
        ),
        Kind(
            "fell back",
            "ba94583681a2481ea32ef3d2637953c2",
            True,
            "Another interpreter serves now",
            "The better one failed its probes, so that the next best took its place. It works, "
            "but may be slower or older.",
            "maid status --all shows what is wrong with the better one; reinstall its package, "
            "then maid reload.",
        ),
        Kind(
            "healed",
            "b1d0a9da855a4cbeb3d65a5dd794f081",
            False,
            "An entry was repaired",
            "It was gone, disabled or replaced, and serves again. Where the kernel tells, the "
            "sentence says who did it: the program, what started it, its service or container, "
            "and its process. It is another tool's reset as a rule, or a restart of "
            "systemd-binfmt.",
            "If it happens often, have that tool leave the table alone: maid doctor names those "
            "that are installed.",
        ),
        Kind(
            "remounted",
            "c3eb1661ca15464ba7c74899be00988a",
            False,
            "binfmt_misc was mounted again",
            "Somebody has unmounted the table; entries were kept meanwhile.",
        ),
        Kind(
            "renewed",
            "dfd6a5e24fd2442b8d74419329914a13",
            False,
            "An entry was renewed",
            "Its interpreter or CPU model has changed. At no moment did nothing serve.",
        ),
        Kind(
            "removed",
            "e8ef20c2a39148a0a5c688b495106d88",
            False,
            "An entry of maid's own was removed",
            "It is not wanted any more, by the configuration or because its interpreter is gone.",
        ),
        Kind(
            "released",
            "1f7941a4ffc243b0b088e8c5f593a1c9",
            False,
            "Every entry of maid's own was removed",
            "Somebody asked for it (maid release). Nothing is registered until the next start "
            "or reload.",
            "maid reload registers again.",
        ),
        Kind(
            "shadowed",
            "69bf661cf53346d58d276fbbb9a3f52a",
            False,
            "An entry of somebody else's does not work",
            "maid's own is tried first by the kernel; the other one stays as it is.",
            "Remove the broken one with the tool that registered it.",
        ),
        Kind(
            "contended",
            "116dfa77920147078a3b33361c0d9c88",
            True,
            "Somebody keeps undoing what maid repairs",
            "Each time it is repaired, as far as the limits of reliability.md allow; told once a "
            "minute while it lasts.",
            "Where the kernel tells who it was, the sentence says so. Otherwise find the other "
            "tool: a cron job, a CI job with --reset, binfmt-support beside systemd-binfmt.",
        ),
        Kind(
            "refused",
            "9141617d83224c2b83c36b51ddf36127",
            True,
            "Something could not be done",
            "The sentence says what, with the kernel's or the program's own word.",
            "maid doctor says what to do.",
        ),
        Kind(
            "step ended",
            "9e6edc2340194dffabd76ae63f978ee0",
            False,
            "A step has ended",
            "With its identifier, its outcome and what it used.",
        ),
        Kind(
            "accelerated",
            "4c57b1c252914fb690f74c6bd7430be8",
            False,
            "Programs of a step ran natively",
            "With how many of which tool.",
        ),
        Kind(
            "emulated",
            "f2f43a37bef84acf8250ec8bec5c15e3",
            False,
            "A step is not accelerated",
            "With the reason; its result is the same, it only takes longer.",
            "maid accel list says what the store has.",
        ),
        Kind(
            "filling",
            "bde4abf4a3e04fb3855d0946bcf8b058",
            False,
            "Native tools are being fetched",
            "For a release that was seen for the first time, or that somebody named.",
        ),
        Kind(
            "filled",
            "568f7aa417984cb5921daf7b041b61cc",
            False,
            "Native tools were fetched",
            "Steps use them from now on, also those that run already.",
        ),
        Kind(
            "crashed",
            "09fb8a4e25c042199ff4595e77006fa8",
            True,
            "An emulated program died of a signal",
            "With the program and the signal. Some crashes are the emulator's: a program that "
            "works on a real machine and dies here.",
            "maid doctor names versions of QEMU with known faults; try another CPU model: maid "
            "run --cpu MODEL.",
        ),
    )
}
