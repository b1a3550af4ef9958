"""The Debian package: what it is made of fits together, and tells of every command there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.metadata import PathDistribution
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

import tenantry
from scripts import debian, manpages
from tenantry.cli.main import cli
from tenantry.settings import load
from tenantry.settings.load import CREDENTIALS
from tests.commands import COMMANDS
from tests.waiting import DEADLINE

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "debian"
UNITS = ["tenantry.service", "tenantry@.service"]


def options(command: click.Command) -> set[str]:
    return {
        name
        for parameter in command.params
        if isinstance(parameter, click.Option) and not parameter.hidden
        for name in parameter.opts
    } | {"--help"}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return dict(manpages.pages())


def test_every_command_has_a_manual_page_and_every_option_is_on_it(pages: dict[str, str]) -> None:
    assert set(pages) == {"-".join(("tenantry", *path)) for path in COMMANDS}
    missing = {
        (" ".join(path), option)
        for path, command in COMMANDS.items()
        for option in options(command)
        if not re.search(
            rf"{re.escape(manpages.escaped(option))}\b", pages["-".join(("tenantry", *path))]
        )
    }
    assert not missing


def test_the_page_of_a_group_leads_to_its_commands(pages: dict[str, str]) -> None:
    for path, command in COMMANDS.items():
        if isinstance(command, click.Group):
            text = pages["-".join(("tenantry", *path))]
            for name in command.list_commands(click.Context(command)):
                assert manpages.escaped("-".join(("tenantry", *path, name))) + "(1)" in text


def test_a_line_of_text_on_a_manual_page_is_never_taken_for_a_request(
    pages: dict[str, str],
) -> None:
    requests = {".TH", ".SH", ".TP", ".PP", ".BR", ".nf", ".fi"}
    begins = {
        line.split(" ")[0]
        for text in pages.values()
        for line in text.splitlines()
        if line.startswith((".", "'"))
    }
    assert begins <= requests


def test_a_paragraph_of_help_keeps_its_lines_where_click_keeps_them() -> None:
    text = "One\nparagraph.\n\n\b\nExample:\n  .tenantry 'x'\n\fnot shown"
    assert list(manpages.paragraphs(text)) == [
        "One paragraph.",
        ".PP",
        ".nf",
        "Example:",
        "\\&  .tenantry \\(aqx\\(aq",
        ".fi",
    ]


def test_a_shell_completes_every_command_and_every_option() -> None:
    complete = ShellComplete(cli, {}, "tenantry", "_TENANTRY_COMPLETE")

    def offered(path: tuple[str, ...], begun: str) -> set[str]:
        return {item.value for item in complete.get_completions(list(path), begun)}

    for path, command in COMMANDS.items():
        long = {option for option in options(command) if option.startswith("--")}
        assert long <= offered(path, "--"), path
        if isinstance(command, click.Group):
            assert set(command.list_commands(click.Context(command))) <= offered(path, ""), path


def test_the_configuration_that_is_installed_is_ours_but_for_the_control_socket(
    tmp_path: Path,
) -> None:
    installed = tmp_path / "config.toml"
    installed.write_text(debian.configuration((ROOT / "config.toml").read_text()))
    ours = load(ROOT / "config.toml", environ={}, client=True).model_dump()
    theirs = load(installed, environ={}, client=True).model_dump()
    assert theirs["control"].pop("socket") == Path(debian.CONTROL_SOCKET)
    ours["control"].pop("socket")
    assert theirs == ours


def test_a_configuration_without_that_key_is_not_packaged() -> None:
    with pytest.raises(SystemExit, match="out of date"):
        debian.configuration("[control]\n")


@pytest.mark.parametrize("name", UNITS)
def test_the_units_start_the_command_that_is_installed(name: str) -> None:
    unit = debian.unit((ROOT / "systemd" / name).read_text())
    assert "ExecStart=/usr/bin/tenantry run " in unit
    assert "/usr/local" not in unit
    assert "$(TREE)/usr/bin/tenantry" in (PACKAGE / "rules").read_text()
    assert "Documentation=man:tenantry(1)\n" in unit


def test_commands_look_for_the_socket_where_the_unit_has_it_made() -> None:
    unit = (ROOT / "systemd" / "tenantry.service").read_text()
    made = re.search(r"^RuntimeDirectory=(\S+)$", unit, re.MULTILINE)
    assert made is not None
    assert f"/run/{made[1]}/control.sock" == debian.CONTROL_SOCKET


def test_systemd_finds_nothing_to_object_to_in_the_unit_of_the_package(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not on this machine")
    unit = tmp_path / "tenantry.service"
    text = debian.unit((ROOT / "systemd" / "tenantry.service").read_text())
    unit.write_text(text.replace("/usr/bin/tenantry", "/bin/true"))
    ended = subprocess.run(
        [program, "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (ended.returncode, ended.stdout + ended.stderr) == (0, "")


def test_a_purge_leaves_neither_state_nor_secrets() -> None:
    script = (PACKAGE / "tenantry.postrm").read_text()
    removed = re.search(r"for name in ([\w ]+);", script)
    assert removed is not None
    assert set(removed[1].split()) == set(CREDENTIALS)
    assert "rm -rf /var/lib/tenantry " in script


@pytest.mark.parametrize("name", ["postinst", "postrm", "prerm"])
def test_maintainer_scripts_are_well_formed(name: str) -> None:
    script = PACKAGE / f"tenantry.{name}"
    subprocess.run(["sh", "-n", str(script)], check=True, timeout=DEADLINE)
    assert script.read_text().startswith("#!/bin/sh\nset -e\n")


def test_the_version_is_that_of_the_program() -> None:
    newest = re.match(r"tenantry \(([^)]+)\)", (PACKAGE / "changelog").read_text())
    assert newest is not None
    assert re.split(r"[+~]", newest[1])[0] == tenantry.__version__


def test_make_hands_over_all_that_the_package_is_made_of() -> None:
    named = re.search(
        r"^PACKAGED = ((?:.*\\\n)*.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert named is not None
    packaged = named[1].replace("\\\n", " ").split()
    assert [name for name in packaged if not (ROOT / name).exists()] == []
    linked = {one.readlink().name for one in (ROOT / "tenantry").iterdir() if one.is_symlink()}
    assert linked | {"tenantry"} <= set(packaged)


def distribution(site: Path, name: str, **files: str) -> PathDistribution:
    """Make a Python package as pip installs it, with these files of text about its license."""
    about = site / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {name}\nVersion: 1.0\nAuthor: Ann Author\n"
        "License-Expression: MIT\n"
    )
    for each, text in files.items():
        (about / each).write_text(text)
    records = [f"{about.name}/{each},," for each in ("METADATA", *files)]
    (about / "RECORD").write_text("\n".join([*records, f"{name}/__init__.py,,", "../bin/it,,"]))
    return PathDistribution(about)


def test_the_copyright_names_each_python_package_with_its_license(tmp_path: Path) -> None:
    bundled = [
        distribution(tmp_path, "second", LICENSE="Do as you like.\n\n  But not that.\n"),
        distribution(tmp_path, "First", NOTICE="Heed."),
        distribution(tmp_path, "tenantry", LICENSE="our own, which stands above"),
    ]
    first, second = debian.stanzas(bundled)
    assert first.startswith(
        "Files: usr/lib/tenantry/lib/python3*/site-packages/First-1.0.dist-info/*\n"
    )
    assert second.splitlines() == [
        "Files: usr/lib/tenantry/lib/python3*/site-packages/second-1.0.dist-info/*",
        " usr/lib/tenantry/lib/python3*/site-packages/second/*",
        "Copyright: Ann Author",
        "License: second-1.0",
        " License of second 1.0: MIT.",
        " .",
        " LICENSE:",
        " .",
        " Do as you like.",
        " .",
        "   But not that.",
    ]


def test_a_license_that_every_debian_has_is_referred_to(tmp_path: Path) -> None:
    text = "\n        Apache License\n     Version 2.0, January 2004\n\nTERMS AND CONDITIONS\n"
    (stanza,) = debian.stanzas([distribution(tmp_path, "one", LICENSE=text)])
    assert stanza.endswith("\n LICENSE: the text is in /usr/share/common-licenses/Apache-2.0.")
