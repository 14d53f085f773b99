"""Settings say what is wrong with them, by name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from phoi_edge_node.cli.edge import init
from phoi_edge_node.errors import SettingsError
from phoi_edge_node.settings import EdgeSettings, SiteMode, read_settings


def _read(tmp_path: Path, text: str) -> object:
    path = tmp_path / "edge.toml"
    path.write_text(f'data = "{tmp_path}"\n{text}', encoding="utf-8")
    return read_settings(path)


def test_what_init_writes_can_be_read_and_keeps_results_inside(tmp_path: Path) -> None:
    init(tmp_path / "edge", "my-hospital")
    settings = read_settings(tmp_path / "edge" / "edge.toml")
    assert settings.site.mode is SiteMode.SHADOW
    assert settings.site.name == "my-hospital"
    with pytest.raises(SettingsError, match="exists already"):
        init(tmp_path / "edge", "my-hospital")


def test_what_init_leaves_out_can_be_let_in(tmp_path: Path) -> None:
    init(tmp_path / "edge", "my-hospital")
    file = tmp_path / "edge" / "edge.toml"
    lines = file.read_text(encoding="utf-8").splitlines()
    optional = [line.removeprefix("# ") for line in lines if re.match(r"# (\[|\w+ = )", line)]
    file.write_text("\n".join([*lines, *optional]), encoding="utf-8")
    settings = read_settings(file)
    assert settings.archives
    for section in ("orders", "worklist", "watched_folder", "stow", "hl7", "fhir", "mlflow"):
        assert getattr(settings, section) is not None, section


_ARCHIVE = '[[archives]]\nae_title = "PACS"\nhost = "pacs"\nport = 104\n'
_FHIR = '[fhir]\nbase_url = "https://emr.example/fhir"\n'
FHIR_PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "connect-a-fhir-server.md"
EXAMPLES = re.findall(r"```toml\n(.*?)```", FHIR_PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_of_how_to_connect_a_fhir_server_is_good(tmp_path: Path, example: str) -> None:
    whole = example if "base_url" in example else _FHIR + example.replace("[fhir]\n", "")
    settings = _read(tmp_path, whole)
    assert isinstance(settings, EdgeSettings)
    assert settings.fhir


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('[site]\nmode = "live"', "site.mode"),
        (f"{_ARCHIVE}objects = []", "objects is empty"),
        (f'{_ARCHIVE}objects = ["sr", "sc"]', 'names the segmentation: add "seg"'),
        ('[site]\nname = "Bệnh viện"', "site.name"),
        ('[dicom]\nae_title = "MUCH TOO LONG A TITLE"', "dicom.ae_title"),
        ("[dicom]\nport = 70000", "dicom.port"),
        ("[dicom]\nprot = 104", "dicom.prot"),
        ('[web]\nhost = "0.0.0.0"', "tls_certificate"),
        ('[web]\ntls_key = "k.pem"', "tls_certificate"),
        ('[fhir]\nbase_url = "emr.example"', "fhir.base_url"),
        (
            f"{_FHIR}bearer_token_file = 't'\n[fhir.oauth2]\nclient_id = 'p'\n"
            "client_secret_file = 's'",
            "set either bearer_token_file or oauth2",
        ),
        (f"{_FHIR}[fhir.oauth2]\nclient_id = 'p'", "fhir.oauth2"),
        (f"{_FHIR}tls_certificate = 'c'", "set both tls_certificate and tls_key"),
        ('[inference]\ntls_ca = "ca.pem"', "tls_certificate"),
        ("[[archives]]\nport = 104", "archives.0.ae_title"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(SettingsError, match=key.replace(".", r"\.")):
        _read(tmp_path, text)


def test_no_file_and_no_toml_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="phoi edge init"):
        read_settings(tmp_path / "absent.toml")
    with pytest.raises(SettingsError, match="not valid TOML"):
        _read(tmp_path, "[site")


def test_the_environment_goes_before_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHOI_EDGE__SITE__MODE", "pacs")
    settings = _read(tmp_path, '[site]\nmode = "shadow"\nname = "a"')
    assert settings.site.mode is SiteMode.PACS  # type: ignore[attr-defined]
    assert settings.site.name == "a"  # type: ignore[attr-defined]
