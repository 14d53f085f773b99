"""The command ``phoi`` and ``phoi models``, as processes: what a person types and sees."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from phoi_models import command_line
from phoi_models.command_line import main
from support.bundles import write_bundle

PHOI = Path(sys.executable).with_name("phoi")


def phoi(home: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PHOI, *map(str, arguments)],
        env={**os.environ, "PHOI_HOME": str(home), "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_every_command_and_imports_none() -> None:
    script = (
        "import sys\n"
        "sys.argv = ['phoi', '--help']\n"
        "from phoi_models.command_line import main\n"
        "try: main()\n"
        "finally: print('LOADED', [m for m in ('torch', 'mlflow', 'numpy', 'grpc', 'fastapi')"
        " if m in sys.modules])\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout

    for name in (
        "analyze",
        "deliveries",
        "demo",
        "doctor",
        "edge",
        "hl7",
        "models",
        "reconcile",
        "send",
        "train",
        "worker",
    ):
        assert f" {name} " in shown
    assert "LOADED []" in shown


def test_version(tmp_path: Path) -> None:
    assert phoi(tmp_path, "--version").stdout.startswith("phoi 0.")


def test_an_unknown_command_is_wrong_usage(tmp_path: Path) -> None:
    assert phoi(tmp_path, "nonsense").returncode == 2


def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["phoi", "worker", "--help"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    running = ("phoi_inference", "phoi_models.sessions", "phoi_models.device_buffers")
    for module in [m for m in sys.modules if m.startswith(running)]:
        monkeypatch.delitem(sys.modules, module)

    with pytest.raises(SystemExit) as exit_:
        main()

    assert exit_.value.code == 1
    assert capsys.readouterr().err == (
        "phoi: `worker` needs onnxruntime, which is not installed: run pip install 'phoi[worker]'\n"
    )


def test_every_command_is_described_and_every_description_used() -> None:
    groups = (command_line.GROUP, f"{command_line.GROUP}.models")
    names = {f"{g}.{e.name}" for g in groups for e in entry_points(group=g)}

    assert names == set(command_line._ABOUT)


def test_a_bundle_goes_from_signing_to_running(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    bundle = write_bundle(tmp_path / "bundle")
    key = tmp_path / "theirs.pem"
    for home in (ours, theirs):
        assert phoi(home, "models", "init").returncode == 0
    assert "signed: test-blobs 1.0.0" in phoi(theirs, "models", "sign", bundle).stdout
    key.write_text(phoi(theirs, "models", "public-key").stdout)

    stranger = phoi(ours, "models", "install", bundle)
    assert (stranger.returncode, stranger.stdout) == (1, "")
    assert "not trusted here" in stranger.stderr
    assert len(stranger.stderr.splitlines()) == 1

    trusted = phoi(ours, "models", "trust", key)
    key_id = trusted.stdout.split()[-1]
    assert phoi(ours, "models", "verify", bundle).returncode == 0
    assert "installed: test-blobs 1.0.0" in phoi(ours, "models", "install", bundle).stdout
    assert "ready" in phoi(ours, "models", "list").stdout

    assert phoi(ours, "models", "revoke", key_id).returncode == 0
    assert "revoked" in phoi(ours, "models", "list").stdout
    assert phoi(ours, "models", "verify", bundle).returncode == 1


def test_an_error_is_one_line_and_a_traceback_only_on_request(tmp_path: Path) -> None:
    plain = phoi(tmp_path, "models", "revoke", "12")
    debug = phoi(tmp_path, "models", "revoke", "12", PHOI_DEBUG="1")

    assert plain.stderr == "phoi: give the whole key id or bundle hash: 64 hex digits\n"
    assert "Traceback" in debug.stderr
    assert (plain.returncode, debug.returncode) == (1, 1)


def test_a_day_after_which_no_calendar_goes_on_is_refused_plainly(tmp_path: Path) -> None:
    assert phoi(tmp_path, "edge", "init", tmp_path, "--site", "bvdk").returncode == 0
    refused = phoi(tmp_path, "recall", "--to", "9999-12-31", "-s", tmp_path / "edge.toml")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "name an earlier one" in refused.stderr
