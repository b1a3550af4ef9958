"""What stands in deploy/ speaks of metrics, sections and alerts that there are."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from scripts import dashboards
from tenantry.metrics.collector import FAMILIES
from tenantry.settings.load import ENVIRONMENT
from tests.deployed import DEPLOY, ROOT, RULES, alerts, found, metrics_of, queries

TESTS = DEPLOY / "prometheus" / "rules.test.yml"

OF_THE_CLIENT = {
    "up", "process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds",
}  # fmt: skip
"""What Prometheus and its client give by themselves."""

SUFFIXES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "info": ("_info",)}


def exported() -> set[str]:
    names = set(OF_THE_CLIENT)
    for name, family in FAMILIES.items():
        names |= {name + suffix for suffix in SUFFIXES.get(family.type, ("",))}
    return names


def test_every_metric_that_is_asked_for_is_exported() -> None:
    there = exported()
    unknown = {(where, name) for where, expr in queries() for name in metrics_of(expr) - there}
    assert not unknown


def test_every_alert_says_how_bad_it_is_and_leads_to_a_section() -> None:
    headings = re.findall(
        r"^##+ (.+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE
    )
    anchors = {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings}
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning"}, rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}, rule["alert"]
        assert rule["annotations"]["runbook"] in anchors, rule["alert"]


def test_every_alert_has_a_test_in_which_it_fires() -> None:
    fired = {
        case["alertname"]
        for test in yaml.safe_load(TESTS.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert {rule["alert"] for rule in alerts()} == fired


def test_dashboards_are_as_their_builder_writes_them() -> None:
    stale = [
        name
        for name in dashboards.DASHBOARDS
        if not dashboards.same(dashboards.HOME / f"{name}.json", dashboards.written(name))
    ]
    assert not stale, "run scripts/dashboards.py"


def holds(tool: str, *arguments: str | Path, cwd: Path = DEPLOY) -> None:
    """Run a checker, and see that it finds nothing."""
    done = subprocess.run(
        [found(tool), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_the_rules_right_and_their_tests_pass() -> None:
    holds("promtool", "check", "rules", RULES.name, cwd=RULES.parent)
    holds("promtool", "test", "rules", TESTS.name, cwd=RULES.parent)


def test_promtool_reads_every_query_of_the_dashboards(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": expr.replace("$tenant", "acme")}
        for number, (_, expr) in enumerate(queries())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    holds("promtool", "check", "rules", file.name, cwd=tmp_path)


def test_the_containers_are_described_as_their_engines_read_them() -> None:
    holds("hadolint", "Containerfile")
    holds("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "compose.yaml")
    holds("kubernetes-validate", "--strict", "kubernetes/tenantry.yaml")


def test_secrets_are_read_by_who_has_made_them_and_by_containers_and_by_nobody_else(
    tmp_path: Path,
) -> None:
    made = shutil.copy(DEPLOY / "make-secrets.sh", tmp_path)
    signer = tmp_path / "tenantry"
    signer.write_text("#!/bin/sh\necho a token\n")
    signer.chmod(0o700)
    for _ in range(2):
        subprocess.run(["sh", made], env=os.environ | {"TENANTRY": str(signer)}, check=True)
        # What is in it is mounted file by file.
        assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "secrets" / "metrics_token").read_text() == "a token"
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "secrets").iterdir()}
    assert modes == {0o644}


def test_what_the_compose_file_mounts_and_names_is_there() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    made = (DEPLOY / "make-secrets.sh").read_text()
    for name, secret in services["secrets"].items():
        assert secret["file"].removeprefix("./secrets/") in made, name
    for service in services["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in services["volumes"] or (DEPLOY / source).is_dir(), volume
        for variable in service.get("environment", {}):
            key = variable.removesuffix("_FILE")
            assert not key.startswith(("TENANTRY_", "RABBITMQ_", "DATABASE_")) or key in {
                name for name, _ in ENVIRONMENT.values()
            }, variable


@pytest.mark.parametrize("wrong", ["tenantry_reddy", "messages_processed", "tenant_worker"])
def test_a_metric_that_is_none_is_found(wrong: str) -> None:
    assert metrics_of(f'sum(rate({wrong}{{job="tenantry"}}[5m]))') == {wrong}
    assert wrong not in exported()
