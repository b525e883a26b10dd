"""What a newcomer meets: help, typos, units, terminals, and a server that is not there yet."""

from __future__ import annotations

import importlib
import math
import os
import pty
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from durable_streams.cli.app import _COMMANDS, _SHELL_NAMES, group
from durable_streams.cli.help import GUESSES
from durable_streams.cli.units import Duration, Size, show_duration, show_size

COMMAND = [sys.executable, "-m", "durable_streams"]
PATIENCE = 100.0  # seconds until a test gives up
SOURCES = Path(importlib.import_module("durable_streams").__file__).parent


def command_named(name: str) -> click.Command:
    found = group.get_command(click.Context(group), name)
    assert found is not None
    return found


class Terminal:
    """A command on a pseudo-terminal, with everything that it writes."""

    def __init__(self, cli, *arguments: str, width: int = 80) -> None:
        self._master, slave = pty.openpty()
        self.shown = b""
        self.process = cli.spawn(
            *arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=cli.environment({"TERM": "xterm", "COLUMNS": str(width)}),
            start_new_session=True,
        )
        os.close(slave)

    def until(self, text: bytes) -> bytes:
        while text not in self.shown:
            part = self._read()
            assert part, f"it ended with {self.shown!r}"
        return self.shown

    def write(self, text: bytes) -> None:
        os.write(self._master, text)

    def finish(self) -> str:
        """Return all that it showed, once it has ended; lines end as a program wrote them."""
        while self._read():
            pass
        self.process.wait(PATIENCE)
        os.close(self._master)
        return self.shown.replace(b"\r\n", b"\n").decode()

    def _read(self) -> bytes:
        try:
            part = os.read(self._master, 65536)
        except OSError:  # Linux: all ends of the other side are closed
            part = b""
        self.shown += part
        return part


# -- E1


def test_e1_append_waits_for_a_server_that_is_not_there_yet(bare, serving):
    server = serving("--data-dir", "data")
    bare.ok("create", "s", "-t", "json")
    server.kill()
    process = bare.spawn("append", "s", "--ndjson", stdin=subprocess.PIPE)
    process.stdin.write(b"1\n2\n")
    process.stdin.close()
    process.stdin = None
    words = process.stderr.readline()  # after all quick retries
    assert re.fullmatch(rb"durable-streams: .*; trying again for up to \d+ s\n", words)
    server.start()
    said, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, b"")
    assert b"stored 2 records" in said
    assert bare.ok("read", "s") == b"[1,2]"


def test_e1_append_waits_for_a_server_that_fails(bare, http_peer, eventually):
    http_peer.answer(503, b"")
    bare.root = http_peer.root
    process = bare.spawn("append", "s", "--ndjson")
    assert b"trying again" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130


def test_e1_the_time_is_that_of_the_option(bare):
    bare.root = "http://127.0.0.1:1/v1/stream"
    done = bare.run("append", "s", "--ndjson", "--retry-for", "0", stdin=b"1\n")
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)


def test_e1_what_waiting_does_not_change_ends_at_once(cli):
    assert "404" in cli.error("append", "missing", "--ndjson", "--retry-for", "1h")


# -- E2


def test_e2_the_bar_of_what_was_sent_moves(bare):
    (bare.folder / "in.ndjson").write_bytes(b"".join(b'{"n":%d}\n' % n for n in range(600)))
    shown = Terminal(bare, "demo", "--firehose", "--kills", "1", "--input", "in.ndjson", width=120).finish()
    counts = [
        int(count) for count in re.findall(r"sent [^\n]*?(\d+)/600", re.sub(r"\x1b\[[\d;?]*\w", "", shown))
    ]
    assert counts[-1] == 600
    assert counts == sorted(counts)


# -- E6: help


@pytest.mark.parametrize("width", [80, 100])
def test_e6_summaries_are_not_cut(bare, width):
    done = bare.run("--help", env={"COLUMNS": str(width)})
    shown = done.stdout.decode()
    for name in _COMMANDS:
        line = next(line for line in shown.splitlines() if line.startswith(f"  {name} "))
        assert "..." not in line
        assert "…" not in line
        assert line.endswith(".")
        assert command_named(name).short_help in line
        assert len(line) <= 80


@pytest.mark.parametrize("name", _COMMANDS)
def test_e6_each_help_has_an_example_that_is_taken(name):
    command = command_named(name)
    context = click.Context(command, info_name=f"durable-streams {name}", max_content_width=100)
    shown = command.get_help(context)
    assert "Examples:" in shown
    for example in command.examples:
        assert f"  {example}\n" in shown
        typed = next(part for part in example.split("|") if "durable-streams" in part)
        program, typed_name, *arguments = shlex.split(typed)
        assert (program, typed_name) == ("durable-streams", name)
        command.make_context(name, arguments)


@pytest.mark.parametrize("name", _COMMANDS)
def test_e6_each_option_stands_in_one_group(name):
    command = command_named(name)
    options = {parameter.name for parameter in command.params}
    grouped = [option for options in command.groups.values() for option in options]
    assert len(set(grouped)) == len(grouped)
    assert set(grouped) <= options
    shown = command.get_help(click.Context(command, max_content_width=100))
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert sum(parameter.opts[0] in line.split() for line in option_lines(shown)) == 1, parameter.opts


def option_lines(shown: str) -> list[str]:
    lines = shown[shown.index("\nOptions") :].splitlines()
    return [line[2:].partition("  ")[0].replace(",", " ") for line in lines if line.startswith("  -")]


def test_e6_the_package_is_a_program(bare):
    done = [
        subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, check=True)
        for module in ("durable_streams", "durable_streams.cli")
    ]
    assert done[0].stdout == done[1].stdout
    assert done[0].stdout.startswith(b"Usage: durable-streams ")


# -- E6: typos


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("reed", "read"),
        ("Tail", "tail"),
        ("appendd", "append"),
        ("rm", "delete"),
        ("list", "ls"),
        ("xyz", None),
        ("-q", None),
    ],
)
def test_e6_a_typo_suggests_the_command(bare, typed, meant):
    message = bare.error(typed, "s", code=2)
    assert ("did you mean" in message) == (meant is not None)
    assert meant is None or f"did you mean '{meant}'?" in message


def test_e6_every_guess_is_a_command():
    assert set(GUESSES.values()) <= set(_COMMANDS)
    assert not set(GUESSES) & set(_COMMANDS)


def test_e6_a_typo_suggests_the_option(bare):
    assert "Did you mean '--offset'? 'durable-streams read --help'" in bare.error(
        "read", "s", "--ofset", "1", code=2
    )


# -- E6: units


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("1.5", 1.5),
        (".5s", 0.5),
        ("1e3", 1000),
        ("250ms", 0.25),
        ("90s", 90),
        ("5m", 300),
        ("5 M", 300),
        ("1h30m", 5400),
        ("1h 30m 5s", 5405),
        ("7d", 604800),
        ("2w", 1209600),
        ("1.1h", 3960),
        ("inf", math.inf),
    ],
)
def test_e6_durations_as_people_write_them(text, seconds):
    assert Duration(endless=True).convert(text, None, None) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "-1", "-5m", "5x", "m", "5m3", "nan", "inf", "1e999", "٣", "5mm", "9" * 70, "1:30", "1,5"],
)
def test_e6_what_is_no_duration(text):
    with pytest.raises(click.BadParameter):
        Duration().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("10B", 10),
        ("64MiB", 64 << 20),
        ("64 mib", 64 << 20),
        ("64M", 64 << 20),
        ("10MB", 10_000_000),
        ("1.5KiB", 1536),
        ("1kB", 1000),
        ("2GiB", 2 << 30),
        ("1TB", 10**12),
    ],
)
def test_e6_sizes_as_people_write_them(text, size):
    assert Size().convert(text, None, None) == size


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "1.5", "64Mb/s", "MiB", "1e6", "0MiB", "٣", "0.0001KiB", "9" * 70]
)
def test_e6_what_is_no_size(text):
    with pytest.raises(click.BadParameter):
        Size().convert(text, None, None)


@pytest.mark.parametrize(
    "seconds", [0.0, 0.005, 0.25, 1.0, 1.5, 30.0, 90.0, 120.0, 3600.0, 7200.0, 86400.0 * 3]
)
def test_e6_what_is_shown_reads_back_as_the_same_duration(seconds):
    assert Duration().convert(show_duration(seconds), None, None) == seconds


@pytest.mark.parametrize("size", [1, 1000, 1024, 1536, 1 << 20, 999_999_999, 3 << 30])
def test_e6_what_is_shown_reads_back_as_the_same_size(size):
    assert Size().convert(show_size(size), None, None) == size


def test_e6_every_time_and_size_has_units():
    """An option that takes seconds or bytes takes units too."""
    for name in _COMMANDS:
        for parameter in command_named(name).params:
            if not isinstance(parameter, click.Option):
                continue
            is_share = parameter.metavar == "SHARE"
            assert is_share or not isinstance(parameter.type, click.FloatRange), (name, parameter.opts)
            shown = parameter.metavar or parameter.type.name.upper()
            assert shown not in {"SECONDS", "BYTES"}, (name, parameter.opts)
            if shown in {"TIME", "SIZE"} and parameter.name != "expires_at":
                assert isinstance(parameter.type, (Duration, Size)), (name, parameter.opts)


def test_e6_units_reach_the_server(cli, bare, serving):
    cli.ok("create", "s", "-t", "text", "--ttl", "5m")
    assert b"ttl-seconds         300\n" in cli.ok("head", "s")
    serving("--memory", "--max-body", "1KiB", "--long-poll-timeout", "200ms")
    bare.ok("create", "s", "-t", "text")
    bare.ok("append", "s", "x" * 1024)
    assert "413" in bare.error("append", "s", "x" * 1025)
    done = bare.run(
        "serve", "--port", "0", env={"DURABLE_STREAMS_MAX_BODY": "1 parsec", "DURABLE_STREAMS_MEMORY": "1"}
    )
    assert (done.returncode, b"'1 parsec' is no size" in done.stderr) == (2, True)


# -- E6: messages of a shell


@pytest.mark.parametrize("command", [["append", "s"], ["close", "s"], ["create", "new", "-t", "json"]])
def test_e6_a_text_for_a_json_stream(cli, command):
    cli.ok("create", "s", "-t", "json")
    message = cli.error(*command, "hello")
    assert "VALUE is not valid JSON" in message
    assert "'\"hello\"'" in message
    assert "json.dumps" not in message
    assert "json.dumps" not in cli.error(*command, '{"a": nonsense}')
    (cli.folder / "in.txt").write_bytes(b"{}\n{}\n")
    message = cli.error(*command, "--file", "in.txt")
    assert "in.txt is not valid JSON" in message
    assert "--ndjson" in message
    assert "standard input is not valid JSON" in cli.error(*command, "--file", "-", stdin=b"nonsense")


def test_e6_names_of_the_python_api_become_options():
    sources = "".join(path.read_text() for path in SOURCES.rglob("*.py") if "cli" not in path.parts)
    for python, _ in _SHELL_NAMES:
        assert python in sources, "the table follows the messages"


# -- E6: terminals


def test_e6_output_on_a_terminal_ends_its_line(cli):
    cli.ok("create", "s", "-t", "text", "no line break")
    assert Terminal(cli, "read", "s").finish() == "no line break\n"
    assert cli.ok("read", "s") == b"no line break", "elsewhere bytes are bytes"
    cli.ok("close", "s", " at the end\n")
    assert Terminal(cli, "tail", "s").finish() == "no line break at the end\n"
    cli.ok("create", "empty", "--closed")
    assert Terminal(cli, "tail", "empty").finish() == ""


@pytest.mark.parametrize("options", [[], ["--file", "-"], ["--ndjson"]])
def test_e6_a_command_that_reads_from_a_terminal_says_so(cli, options):
    cli.ok("create", "s", "-t", "json")
    terminal = Terminal(cli, "append", "s", *options)
    terminal.until(b"reading from the terminal; Ctrl-D ends the input\r\n")
    terminal.write(b"1\n\x04")
    terminal.finish()
    assert cli.ok("read", "s") == b"[1]"


def test_e6_each_batch_of_json_has_a_line_of_its_own_on_a_terminal(cli):
    cli.ok("create", "s", "-t", "json", "1")
    assert Terminal(cli, "read", "s").finish() == "[1]\n"
    tail = Terminal(cli, "tail", "s")
    tail.until(b"[1]\r\n")
    cli.ok("close", "s", "2")
    assert tail.finish() == "[1]\n[2]\n"


def test_e6_serve_shows_on_a_terminal_what_to_try(bare):
    terminal = Terminal(bare, "serve", "--memory", "--port", "0", width=300)
    shown = terminal.until(b"Ctrl-C stops the server.\r\n").replace(b"\r\n", b"\n").decode()
    typed = [line.strip() for line in shown.splitlines() if line.startswith("  ")]
    assert len(typed) == 3
    folder = bare.folder / "bin"  # commands are found as they would be
    folder.mkdir()
    program = folder / "durable-streams"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    program.chmod(0o700)
    path = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    create, tail, curl = typed
    subprocess.run(create, shell=True, check=True, capture_output=True, env=bare.environment(path))
    following = bare.spawn(*shlex.split(tail)[shlex.split(tail).index("tail") :])
    assert following.stdout.read(12) == b"Hello, world"
    if shutil.which("curl"):
        got = subprocess.run(curl, shell=True, check=True, capture_output=True)
        assert got.stdout == b"Hello, world"
    terminal.process.send_signal(signal.SIGTERM)
    terminal.finish()
    assert terminal.process.returncode == 0


# -- E6: completion


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_e6_completion_is_installed_by_one_command(bare, shell):
    home = bare.folder / "home"
    home.mkdir()
    startup = {"bash": home / ".bashrc", "zsh": home / ".zshrc"}.get(shell)
    if startup is not None:
        startup.write_text("echo mine")
    environment = {
        "HOME": str(home),
        "SHELL": f"/usr/bin/{shell}",
        "XDG_DATA_HOME": "",
        "XDG_CONFIG_HOME": "",
        "ZDOTDIR": "",
    }
    script = bare.run("completion", shell, env=environment)
    for _ in range(2):
        done = bare.run("completion", "--install", env=environment)
        assert (done.returncode, done.stderr) == (0, b"")
    written = done.stdout.decode().split()[1].rstrip(",;")
    assert Path(written).read_bytes() == script.stdout
    if startup is not None:
        lines = startup.read_text().splitlines()
        assert lines[0] == "echo mine"
        assert [written in line for line in lines] == [False, True]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing")
def test_e6_bash_completes_commands_and_options(bare):
    script = bare.ok("completion", "bash").decode()
    folder = bare.folder / "bin"
    folder.mkdir()
    program = folder / "durable-streams"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(COMMAND)} "$@"\n')
    program.chmod(0o700)
    ask = f'_durable_streams_completion {program}; echo "${{COMPREPLY[@]}}"'
    asked = f"""{script}
COMP_WORDS=(durable-streams ta); COMP_CWORD=1; {ask}
COMPREPLY=(); COMP_WORDS=(durable-streams tail --check); COMP_CWORD=2; {ask}
"""
    done = subprocess.run(["bash", "-c", asked], capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"tail\n--checkpoint\n", b"")


def test_e6_completion_of_an_unknown_shell(bare):
    message = "which shell is it? Give one of bash, zsh, fish"
    done = bare.run("completion", env={"SHELL": "/bin/tcsh"})
    assert (done.returncode, message in done.stderr.decode()) == (2, True)


def test_garbage_is_collected_while_a_command_runs():
    program = """if True:
        import gc
        from durable_streams.cli import inspect
        from durable_streams.cli.app import main
        inspect.ls.callback = lambda *_, **__: print(gc.isenabled())
        main(["ls"])
        print(gc.isenabled())
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
