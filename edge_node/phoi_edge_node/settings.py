"""The settings of an edge node: one TOML file plus environment, frozen, validated at start.

Environment variables override the file: ``PHOI_EDGE__SITE__MODE=pacs``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from phoi_edge_node.errors import SettingsError


def _ae_title(value: str) -> str:
    # PS3.5 6.2: AE is at most 16 characters of the default repertoire, no backslash.
    if not 1 <= len(value.strip()) <= 16 or "\\" in value or not value.isascii():
        raise ValueError("an AE title has 1 to 16 plain ASCII characters")
    return value.strip()


AeTitle = Annotated[str, AfterValidator(_ae_title)]
Port = Annotated[int, Field(ge=0, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SiteMode(StrEnum):
    """Where results may go."""

    SHADOW = "shadow"  # stay inside Phoi
    PACS = "pacs"
    PACS_EMR = "pacs+emr"


class SiteSettings(_Section):
    """The hospital.

    Attributes:
        name: appears in MLflow: small letters, digits and -, never a patient's or a person's.
        mode: ``shadow``: results stay inside Phoi; ``pacs``: they go to the archives; ``pacs+emr``:
            to the EMR too.
        language: the page's first language; each user may switch.
    """

    name: str = Field(default="unnamed-site", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    mode: SiteMode = SiteMode.SHADOW
    language: Literal["vi", "en"] = "vi"


class DicomSettings(_Section):
    """What listens for images.

    Attributes:
        ae_title: the called AE title; associations that call another are rejected.
        host: ``0.0.0.0`` to be reached from other machines.
        port: 104 needs root rights; 11112 is usual.
        allowed_calling_ae_titles: who may send; empty: anyone.
        quiet_time_s: a study is complete so long after its last image, if no association is open.
        minimum_free_disk_mb: below it images are refused with status 0xA700.
        maximum_associations: at once.
    """

    ae_title: AeTitle = "PHOI"
    host: str = "127.0.0.1"
    port: Port = 11112
    allowed_calling_ae_titles: tuple[AeTitle, ...] = ()
    quiet_time_s: float = Field(default=30.0, gt=0)
    minimum_free_disk_mb: int = Field(default=2048, ge=0)
    maximum_associations: int = Field(default=32, ge=1)


class ArchiveSettings(_Section):
    """A PACS that takes results by C-STORE.

    Attributes:
        name: of its lane on pages and in metrics.
        ae_title: the called AE title.
        timeout_s: for connecting, negotiating and each answer.
    """

    name: str = Field(default="pacs", pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    ae_title: AeTitle
    host: str
    port: Port
    timeout_s: float = Field(default=30.0, gt=0)


class Hl7Settings(_Section):
    """An EMR that takes ORU^R01 over MLLP.

    Attributes:
        name: of its lane.
        receiving_application: MSH-5.
        receiving_facility: MSH-6.
        timeout_s: for connecting and for the acknowledgement.
    """

    name: str = Field(default="emr-hl7", pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    host: str
    port: Port
    receiving_application: str = "EMR"
    receiving_facility: str = "HOSPITAL"
    timeout_s: float = Field(default=30.0, gt=0)


class FhirSettings(_Section):
    """An EMR with a FHIR R4 server.

    Attributes:
        name: of its lane.
        base_url: of the server, for example ``https://emr.example/fhir``.
        bearer_token_file: file that holds the token, readable by Phoi only.
        timeout_s: for the answer to a transaction.
        patient_identifier_systems: the EMR's identifier system (a URI) for each Issuer of Patient
            ID, "" for images that name none. Without it the EMR cannot know its own patients.
    """

    name: str = Field(default="emr-fhir", pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    base_url: str = Field(pattern=r"^https?://")
    bearer_token_file: Path | None = None
    patient_identifier_systems: Mapping[str, str] = Field(default_factory=dict)
    timeout_s: float = Field(default=30.0, gt=0)


class MlflowSettings(_Section):
    """The central training loop.

    Attributes:
        tracking_uri: of the MLflow server.
        token_file: file that holds the bearer token, readable by Phoi only.
        report_every_s: how often usage is counted; a report goes only when it changed.
        follow_champion_every_s: how often the registry is asked for a new champion.
    """

    tracking_uri: str = Field(pattern=r"^https?://")
    token_file: Path | None = None
    report_every_s: float = Field(default=300.0, gt=0)
    follow_champion_every_s: float = Field(default=300.0, gt=0)


class InferenceSettings(_Section):
    """Where models run.

    Attributes:
        workers: gRPC addresses, ``host:port`` or ``unix:/path``.
        volumes: folder shared with the workers on this host; by default that of PHOI_HOME.
        volumes_budget_mb: of all voxels lent out at once.
        source_listen: ``host:port`` at which workers on other hosts pull voxels; "": nowhere.
        source_address: the same as those workers reach it.
        tls_certificate, tls_key, tls_ca: PEM files for mutual TLS with workers on other hosts.
        model: name of the model for new analyses.
        deadline_s: seconds after which an analysis is given up and tried again.
        maximum_attempts: tries of a study that a worker broke on.
    """

    workers: tuple[str, ...] = ("127.0.0.1:50051",)
    volumes: Path | None = None
    volumes_budget_mb: int = Field(default=4096, ge=64)
    source_listen: str = ""
    source_address: str = ""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    model: str = "phoi-lung-nodule"
    deadline_s: float = Field(default=600.0, gt=0)
    maximum_attempts: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _all_of_tls_or_none(self) -> InferenceSettings:
        files = (self.tls_certificate, self.tls_key, self.tls_ca)
        if any(files) and not all(files):
            raise ValueError("set all three of tls_certificate, tls_key and tls_ca, or none")
        return self


class WebSettings(_Section):
    """The review page.

    Attributes:
        host: another one than 127.0.0.1 needs TLS.
        tls_certificate: PEM file.
        tls_key: PEM file.
        session_hours: after which a person signs in again.
    """

    host: str = "127.0.0.1"
    port: Port = 8080
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    session_hours: float = Field(default=12.0, gt=0)

    @model_validator(mode="after")
    def _tls_unless_local(self) -> WebSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("set both tls_certificate and tls_key, or neither")
        if self.host not in {"127.0.0.1", "::1", "localhost"} and self.tls_certificate is None:
            raise ValueError("off 127.0.0.1 the page needs tls_certificate and tls_key")
        return self


class EdgeSettings(BaseSettings):
    """Everything one edge node is told.

    Attributes:
        data: folder for images, database and keys.
        database_url: of PostgreSQL, ``postgresql+psycopg://...``; by default SQLite in ``data``.
        retry_delays_s: seconds before the second, third, ... try; the last one repeats.
    """

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix="PHOI_EDGE__", env_nested_delimiter="__"
    )

    data: Path
    database_url: str = ""  # default: SQLite in the data folder
    site: SiteSettings = SiteSettings()
    dicom: DicomSettings = DicomSettings()
    archives: tuple[ArchiveSettings, ...] = ()
    hl7: Hl7Settings | None = None
    fhir: FhirSettings | None = None
    mlflow: MlflowSettings | None = None
    inference: InferenceSettings = InferenceSettings()
    web: WebSettings = WebSettings()
    retry_delays_s: tuple[float, ...] = (1, 5, 30, 120, 600, 3600)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment first, then the file."""
        del settings_cls, dotenv_settings, file_secret_settings
        return (env_settings, init_settings)

    @property
    def resolved_database_url(self) -> str:
        """The database in use."""
        return self.database_url or f"sqlite:///{self.data / 'phoi.sqlite'}"


def read_settings(path: Path) -> EdgeSettings:
    """Read and check a settings file.

    Raises:
        SettingsError: no such file, not TOML, or a value that cannot be; the text says which.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file. `phoi edge init` writes one.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from None
    try:
        return EdgeSettings(**values)
    except ValidationError as error:
        lines = [
            f"{path}: {'.'.join(str(part) for part in e['loc'])}: {e['msg']}"
            for e in error.errors()
        ]
        raise SettingsError("\n".join(lines)) from None
