"""What deploy/ holds fits together, and those who know say that it is well-formed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from phoi_edge_node.settings import read_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SERVICES = ("phoi-edge.service", "phoi-worker@.service", "phoi-backup.service")
MOST_EXPOSED = 20  # tenths, of systemd-analyze's 100: below it counts as well protected


def run(*command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units, with programs that are on this machine."""
    folder = tmp_path_factory.mktemp("units")
    for unit in (DEPLOY / "systemd").iterdir():
        text = unit.read_text().replace("/opt/phoi/venv/bin/phoi", "/bin/true")
        (folder / unit.name).write_text(text)
    return folder


def test_systemd_finds_nothing_wrong_with_the_units(units: Path) -> None:
    done = run("systemd-analyze", "verify", "--man=no", *sorted(units.iterdir()))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("service", SERVICES)
def test_services_are_shut_in(units: Path, service: str) -> None:
    done = run(
        "systemd-analyze",
        "security",
        "--offline=true",
        f"--threshold={MOST_EXPOSED}",
        units / service,
    )
    assert done.returncode == 0, done.stdout[-300:]


@pytest.mark.parametrize("service", SERVICES[:2])
def test_services_are_stopped_within_the_time_that_phoi_promises(units: Path, service: str) -> None:
    text = (units / service).read_text()
    assert "Type=notify" in text
    assert "WatchdogSec=" in text
    assert int(re.findall(r"TimeoutStopSec=(\d+)", text)[0]) > 10


@pytest.mark.parametrize(
    "script",
    [
        "deploy/install.sh",
        "deploy/make-offline-bundle",
        "deploy/test-install",
        "scripts/install-tools",
    ],
)
def test_shellcheck_finds_nothing_wrong_with_the_scripts(script: str) -> None:
    done = run("shellcheck", ROOT / script)
    assert done.returncode == 0, done.stdout


def machine(folder: Path, **programs: str) -> str:
    """A PATH on which some programs say something else."""
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def test_the_installer_names_all_that_a_machine_lacks(tmp_path: Path) -> None:
    path = machine(
        tmp_path,
        uname="echo armv7l",
        python3="exit 1",
        df="printf 'head\\n/dev/sda1 9000 8000 1000 89%% /\\n'",
    )
    done = run(DEPLOY / "install.sh", "--check", PATH=path)
    assert done.returncode == 1
    for lack in ("armv7l", "apt-get install python3-venv", "1000 MB are free at /var/lib"):
        assert lack in done.stderr
    assert "1000 MB are free" in done.stderr


def test_a_machine_that_is_fit_is_told_so(tmp_path: Path) -> None:
    path = machine(
        tmp_path,
        uname="echo x86_64",
        df="printf 'head\\n/dev/sda1 90000 8000 82000 9%% /\\n'",
        awk='case "$1" in */MemTotal*) echo 16000 ;; *) echo 82000 ;; esac',
        openssl="true",
    )
    done = run(DEPLOY / "install.sh", "--check", PATH=path)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments", [["--nonsense"], ["--gpu", "amd"], ["--workers", "none"], ["--wheels", "/absent"]]
)
def test_the_installer_refuses_what_it_does_not_know(arguments: list[str]) -> None:
    done = run(DEPLOY / "install.sh", *arguments)
    assert done.returncode != 0
    assert "install.sh:" in done.stderr


def test_prometheus_takes_the_alerts_and_the_example(tmp_path: Path) -> None:
    for file in ("alerts.yaml", "prometheus.yml"):
        shutil.copy(DEPLOY / "prometheus" / file, tmp_path)
    (tmp_path / "page.pem").write_text("")
    for command in (("rules", "alerts.yaml"), ("config", "prometheus.yml")):
        done = run("promtool", "check", command[0], tmp_path / command[1])
        assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_are_given_when_they_should_and_only_then() -> None:
    done = run("promtool", "test", "rules", Path(__file__).with_name("alerts.promtool.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_of_an_alert_is_documented() -> None:
    documented = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"][0][
        "rules"
    ]
    named = {name for rule in rules for name in re.findall(r"\bphoi_\w+", rule["expr"])}
    assert len(named) > 10
    assert {name for name in named if f"`{name}`" not in documented} == set()


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return content


def test_containers_can_write_nothing_but_their_volumes_and_are_not_root() -> None:
    services = compose()["services"]
    assert set(services) == {"models", "worker-1", "worker-2", "edge", "postgres"}
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["image"].startswith("phoi:") or int(service["user"].split(":")[0]) > 0
    assert re.search(r"^USER (?!0)\d+", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)


def test_no_service_takes_all_memory(units: Path) -> None:
    for service in SERVICES[:2]:
        assert re.search(r"^MemoryMax=\d+G$", (units / service).read_text(), re.MULTILINE), service
    for name in ("edge", "worker-1", "worker-2"):
        assert re.match(r"\d+g$", compose()["services"][name]["mem_limit"]), name


def test_reports_of_containers_carry_the_time_of_viet_nam() -> None:
    assert compose()["services"]["edge"]["environment"]["TZ"] == "${TZ:-Asia/Ho_Chi_Minh}"


def test_a_worker_can_tell_its_metrics_to_its_own_machine_and_to_no_other(units: Path) -> None:
    lines = (units / "phoi-worker@.service").read_text().splitlines()
    for line in (
        "EnvironmentFile=-/etc/phoi/worker-%i.env",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
        "IPAddressDeny=any",
        "IPAddressAllow=localhost",
    ):
        assert line in lines


def test_images_are_named_by_version_and_long_runners_are_asked_for_their_health() -> None:
    for name, service in compose()["services"].items():
        version = service["image"].rpartition(":")[2]
        assert re.match(r"\d+\.\d+", version), name
        assert "healthcheck" in service or service["restart"] == "no", name
    bases = re.findall(r"^FROM \S+:(\S+)", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    assert bases
    assert all(re.match(r"\d+\.\d+\.\d+", base) for base in bases)


def test_the_settings_of_the_containers_fit_their_volumes_and_secrets() -> None:
    settings = read_settings(DEPLOY / "compose" / "edge.toml")
    edge, worker = (compose()["services"][name] for name in ("edge", "worker-1"))
    mounts = [v["target"] if isinstance(v, dict) else v.split(":")[1] for v in edge["volumes"]]
    assert {str(settings.data), "/var/backups/phoi"} <= set(mounts)
    assert settings.inference.workers == (worker["environment"]["PHOI_WORKER_LISTEN"],)
    assert str(settings.inference.volumes) in worker["command"]
    assert f"{settings.dicom.port}:{settings.dicom.port}" in edge["ports"]
    named = {Path(str(path)).name for path in (settings.web.tls_certificate, settings.web.tls_key)}
    assert named | {"pgpass"} == set(edge["secrets"]) <= set(compose()["secrets"])
