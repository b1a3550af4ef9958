"""The migrations that come with the program, as files."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tenantry.database.migrations import Migration, migrations
from tenantry.sql import queries


def test_the_migrations_are_numbered_from_1_without_a_gap() -> None:
    assert [one.number for one in migrations()] == list(range(1, len(migrations()) + 1))


def test_the_checksum_is_of_the_text_not_of_its_line_ends() -> None:
    one = Migration(number=1, name="first", sql="SELECT 1;\nSELECT 2;\n")
    assert one.checksum == replace(one, sql="SELECT 1;\r\nSELECT 2;").checksum
    assert one.checksum != replace(one, sql="SELECT 1;\nSELECT 3;\n").checksum
    assert str(one) == "0001_first"


def test_queries_are_found_by_name_without_their_comments() -> None:
    found = queries("journal")
    assert "append" in found
    assert all(b"--" not in text and not text.endswith(b";") for text in found.values())
    assert queries("journal") is found


def test_a_file_of_queries_that_is_not_there_is_an_error() -> None:
    with pytest.raises(FileNotFoundError):
        queries("nonsense")


def test_what_stands_before_a_step_is_a_transaction_of_its_own() -> None:
    one = Migration(number=1, name="one", sql="SELECT 1;\n-- step\nSELECT 2;\n-- steps\n")
    assert [step.strip() for step in one.steps] == ["SELECT 1;", "SELECT 2;\n-- steps"]
