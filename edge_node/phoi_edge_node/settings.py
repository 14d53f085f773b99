"""The settings of an edge node: one TOML file plus environment, frozen, validated at start.

Environment variables override the file: ``PHOI_EDGE__SITE__MODE=pacs``.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from phoi_edge_node.errors import SettingsError


def _ae_title(value: str) -> str:
    # PS3.5 6.2: AE is at most 16 characters of the default repertoire, no backslash.
    if not 1 <= len(value.strip()) <= 16 or "\\" in value or not value.isascii():
        raise ValueError("an AE title has 1 to 16 plain ASCII characters")
    return value.strip()


def _database_url(value: str) -> str:
    try:
        known = not value or make_url(value).drivername in {"postgresql+psycopg", "sqlite"}
    except (ArgumentError, ValueError):  # a port that is no number
        known = False
    if not known:  # quoted nowhere: it may hold a password
        raise ValueError("must be postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE")
    return value


LOCAL = frozenset({"127.0.0.1", "::1", "localhost"})

AeTitle = Annotated[str, AfterValidator(_ae_title)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
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
        allowed_peers: addresses or networks that may connect, as "192.0.2.10" or "192.0.2.0/24";
            empty: any.
        tls_certificate, tls_key: PEM files; with them the port speaks TLS only (BCP 195).
        tls_ca: PEM file; with it every peer must show a certificate that this authority signed.
        quiet_time_s: nothing more came for so long, and no association is open: then the study is
            counted, or taken as complete where no archive can be asked.
        minimum_free_disk_mb: below it images are refused with status 0xA700.
        largest_instance_mb: a longer data set is refused.
        decoded_images_mb: disk for the pixels of compressed images, decoded while their study still
            arrives; 0: they are decoded when they are read. A cache: it may be deleted at any time.
        maximum_associations: at once.
        maximum_associations_per_peer: at once, from one address.
        receiver: ``pynetdicom``, or ``lean``: the same service with its own fast path for C-STORE.
    """

    ae_title: AeTitle = "PHOI"
    host: str = "127.0.0.1"
    port: Port = 11112
    allowed_calling_ae_titles: tuple[AeTitle, ...] = ()
    allowed_peers: tuple[IPvAnyNetwork, ...] = ()
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    quiet_time_s: float = Field(default=30.0, gt=0)
    minimum_free_disk_mb: int = Field(default=2048, ge=0)
    largest_instance_mb: int = Field(default=2048, ge=1)
    decoded_images_mb: int = Field(default=4000, ge=0)
    # select(), by which pynetdicom waits, knows 1024 descriptors.
    maximum_associations: int = Field(default=64, ge=1, le=512)
    maximum_associations_per_peer: int = Field(default=16, ge=1)
    receiver: Literal["pynetdicom", "lean"] = "pynetdicom"

    @property
    def scarce_disk_bytes(self) -> int:
        """Below it receiving would stop soon: what can be had again makes room."""
        return 2 * self.minimum_free_disk_mb * 1_000_000

    @model_validator(mode="after")
    def _certificate_with_key(self) -> DicomSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("set both tls_certificate and tls_key, or neither")
        if self.tls_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_ca needs tls_certificate and tls_key too")
        return self


class CompletenessSettings(_Section):
    """When a study counts as whole.

    An archive of the settings that has ``query`` is asked how many images each series has. Where
    none has, a series without gaps that shows all of the lungs counts as whole.

    Attributes:
        ask_every_s: between two questions about one study; a count holds when given twice.
        limit_s: after this time a study is analysed as it is, and every output says "completeness
            unconfirmed".
        fetch_missing: ask the archive for the images that did not come, where ``retrieve`` is set.
    """

    ask_every_s: float = Field(default=10.0, gt=0)
    limit_s: float = Field(default=1800.0, gt=0)
    fetch_missing: bool = True


class OrdersSettings(_Section):
    """What listens for orders and merges: HL7 v2 over MLLP.

    Attributes:
        host: ``0.0.0.0`` to be reached from other machines, which are then to be named.
        allowed_peers: addresses or networks that may connect; empty: this machine's programs.
        default_issuer: who gave the patients' numbers on images that do not say, as messages name
            it; "": unknown.
        processing_id: MSH-11 of the messages that are taken: production, or, while a site tries its
            interfaces, those of its test system.
        tls_certificate, tls_key: PEM files; with them the port speaks TLS only (BCP 195).
        tls_ca: PEM file; with it every sender must show a certificate that this authority signed.
    """

    host: str = "127.0.0.1"
    port: Port = 2575
    allowed_peers: tuple[IPvAnyNetwork, ...] = ()
    default_issuer: str = ""
    processing_id: Literal["P", "T", "D"] = "P"
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None

    @model_validator(mode="after")
    def _certificate_with_key(self) -> OrdersSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("set both tls_certificate and tls_key, or neither")
        if self.tls_ca is not None and self.tls_certificate is None:
            raise ValueError("tls_ca needs tls_certificate and tls_key too")
        return self

    @model_validator(mode="after")
    def _peers_are_named(self) -> OrdersSettings:
        if self.host not in LOCAL and not self.allowed_peers:
            raise ValueError(
                "orders.allowed_peers is empty: whoever reaches this port could merge patients. "
                'Name who may send, as allowed_peers = ["10.0.0.5"]'
            )
        return self


class WorklistSettings(_Section):
    """A modality worklist SCP that is asked by C-FIND for the order behind a study.

    Attributes:
        ae_title: the called AE title.
        timeout_s: for connecting, negotiating and each answer.
    """

    ae_title: AeTitle
    host: str
    port: Port
    timeout_s: float = Field(default=10.0, gt=0)


class StowSettings(_Section):
    """STOW-RS at ``/dicom-web`` of the page's own port.

    Attributes:
        bearer_token_file: file that holds the token senders must show, readable by Phoi only.
        maximum_request_mb: a longer request is refused.
    """

    bearer_token_file: Path
    maximum_request_mb: int = Field(default=4096, ge=1)


class WatchedFolderSettings(_Section):
    """A folder into which people copy CDs.

    Attributes:
        folder: looked into again and again, with its subfolders; what was taken is removed from it.
        settled_s: a file is taken once it has not changed for so long.
    """

    folder: Path
    settled_s: float = Field(default=5.0, gt=0)


class RetentionSettings(_Section):
    """How long images are kept. Results are kept for ever; nothing goes before it is delivered.

    Attributes:
        pixels_days: images of a study whose results were all delivered are removed after so many
            days; 0: never.
        free_disk_target_mb: below it the images that were delivered longest ago go first, whatever
            their age: those of signed studies, then those that nobody signed.
        review_hours: for so long after its results arrived an unsigned study keeps its images on a
            disk below that target, until receiving would stop soon.
        quarantine_days: what was set aside (other content under a known UID, another patient's
            study, damaged files) is removed after so many days, and first of all on a full disk.
    """

    pixels_days: int = Field(default=30, ge=0)
    free_disk_target_mb: int = Field(default=10_000, ge=0)
    review_hours: int = Field(default=24, ge=0)
    quarantine_days: int = Field(default=90, ge=1)


class ReconciliationSettings(_Section):
    """No study left behind: once a day the archive is asked for its chest CTs.

    Attributes:
        at: local time of day, HH:MM.
        days: how many days back are compared.
    """

    at: str = Field(default="02:30", pattern=r"^([01]\d|2[0-3]):[0-5]\d$")
    days: int = Field(default=2, ge=1)


class WatchdogSettings(_Section):
    """When somebody is told that something waits too long.

    Attributes:
        queued_hours: since a study was first queued, without a result.
        undelivered_hours: since a document was queued, without its destination's receipt.
        unreviewed_days: since a result came, with nobody's signature.
    """

    queued_hours: float = Field(default=4.0, gt=0)
    undelivered_hours: float = Field(default=24.0, gt=0)
    unreviewed_days: float = Field(default=7.0, gt=0)


class DeliverySettings(_Section):
    """How results are sent.

    Attributes:
        maximum_errors: how often a destination may answer that it failed on a document, before the
            document is a dead letter that a person must look at.
        circuit_opens_after: failures in a row without an answer, after which a destination is only
            asked whether it is there, until it is.
    """

    maximum_errors: int = Field(default=10, ge=1)
    circuit_opens_after: int = Field(default=3, ge=1)


class PrioritySettings(_Section):
    """How a result's suggested priority is told outward: the site's own policy.

    Attributes:
        policy: TOML file; see docs/how-to/map-priorities.md. Without it the suggestion is told as
            it is.
    """

    policy: Path | None = None


class LogSettings(_Section):
    """Where log lines go.

    Attributes:
        level: nothing below it is written.
        file: JSON lines; None: to standard error, for the service manager to keep.
        maximum_mb: of one file; then it is set aside and a new one begun.
        keep: how many old files are kept.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    file: Path | None = None
    maximum_mb: int = Field(default=50, ge=1)
    keep: int = Field(default=10, ge=1)


class ArchiveSettings(_Section):
    """A PACS that takes results by C-STORE.

    Attributes:
        name: of its lane on pages and in metrics.
        ae_title: the called AE title.
        timeout_s: for connecting, negotiating and each answer.
        query: it may be asked what it holds (C-FIND at Study Root, or QIDO-RS with ``dicomweb``).
        retrieve: how missing images are fetched from it; ``c-move`` needs Phoi's AE title, address
            and port in the archive's configuration.
        dicomweb: base URL of its DICOMweb service, for example ``https://pacs.example/dicom-web``;
            asked by QIDO-RS in place of C-FIND, unless ``retrieve`` is ``c-move`` or ``c-get``.
        bearer_token_file: file that holds the token for ``dicomweb``, readable by Phoi only.
        tls: speak TLS to it, with the certificate and the authority of ``dicom``.
        commitment: ask it for storage commitment of what was sent.
        objects: which of our objects it gets: segmentation, report, summary picture, key images;
            no report without the segmentation that it names.
    """

    name: str = Field(default="pacs", pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    ae_title: AeTitle
    host: str
    port: Port
    timeout_s: float = Field(default=30.0, gt=0)
    query: bool = False
    retrieve: Literal["", "c-move", "c-get", "wado-rs"] = ""
    dicomweb: str = Field(default="", pattern=r"^(https?://.*)?$")
    bearer_token_file: Path | None = None
    tls: bool = False
    commitment: bool = False
    objects: frozenset[Literal["seg", "sr", "sc", "kos"]] = frozenset({"seg", "sr", "sc", "kos"})

    @model_validator(mode="after")
    def _objects_are_some_and_name_no_missing_one(self) -> ArchiveSettings:
        if not self.objects:
            raise ValueError("objects is empty: name some, or remove the archive")
        if "sr" in self.objects and "seg" not in self.objects:
            raise ValueError('objects: the report ("sr") names the segmentation: add "seg"')
        return self

    @model_validator(mode="after")
    def _wado_needs_an_address(self) -> ArchiveSettings:
        if self.retrieve == "wado-rs" and not self.dicomweb:
            raise ValueError('retrieve = "wado-rs" needs dicomweb')
        return self


class Hl7Settings(_Section):
    """An EMR that takes ORU^R01 over MLLP.

    Attributes:
        name: of its lane.
        receiving_application: MSH-5.
        receiving_facility: MSH-6.
        timeout_s: for connecting and for the acknowledgement.
        mapping: TOML file that fits segments and fields to this hospital; see
            docs/how-to/fit-hl7-to-your-hospital.md.
        tls: speak TLS to it.
        tls_ca: PEM file of its authority; None: the system's list.
        tls_certificate, tls_key: PEM files that Phoi shows to it; None: none.
    """

    name: str = Field(default="emr-hl7", pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    host: str
    port: Port
    receiving_application: str = "EMR"
    receiving_facility: str = "HOSPITAL"
    timeout_s: float = Field(default=30.0, gt=0)
    mapping: Path | None = None
    tls: bool = False
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    @model_validator(mode="after")
    def _tls_files(self) -> Hl7Settings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("set both tls_certificate and tls_key, or neither")
        if not self.tls and (self.tls_ca or self.tls_certificate):
            raise ValueError("tls_ca and tls_certificate need tls = true")
        return self


class FhirOAuth2Settings(_Section):
    """OAuth 2.0 client credentials (RFC 6749, 4.4), as SMART Backend Services use them.

    Attributes:
        token_url: of the authorisation server; "": as the server's SMART configuration says.
        client_id: as registered there.
        client_secret_file: file that holds the secret, readable by Phoi only.
        private_key_file: PEM file; with it Phoi signs an assertion (RFC 7523) in place of a secret.
        key_id: ``kid`` of that key in the registered key set.
        scope: what is asked for. A server that demands the right to search for the conditions of a
            transaction wants ``system/*.read`` too.
    """

    token_url: str = Field(default="", pattern=r"^(https?://.*)?$")
    client_id: str
    client_secret_file: Path | None = None
    private_key_file: Path | None = None
    key_id: str = ""
    scope: str = "system/*.write"

    @model_validator(mode="after")
    def _one_credential(self) -> FhirOAuth2Settings:
        if (self.client_secret_file is None) == (self.private_key_file is None):
            raise ValueError("set either client_secret_file or private_key_file")
        return self


class FhirSettings(_Section):
    """An EMR with a FHIR R4 server.

    Attributes:
        name: of its lane.
        base_url: of the server, for example ``https://emr.example/fhir``.
        bearer_token_file: file that holds the token, readable by Phoi only.
        timeout_s: for the answer to a transaction.
        patient_identifier_systems: the EMR's identifier system (a URI) for each Issuer of Patient
            ID, "" for images that name none. Without it the EMR cannot know its own patients.
        oauth2: how a token is got; not together with ``bearer_token_file``.
        tls_ca: PEM file of the authority of the server and of the authorisation server; None: the
            system's list.
        tls_certificate, tls_key: PEM files that Phoi shows to them; None: none.
        vn_core: name citizens' (CCCD) and health insurance (BHYT) numbers as the draft Viet Nam
            Core (0.6.0) does; see docs/how-to/connect-a-fhir-server.md.
    """

    name: str = Field(default="emr-fhir", pattern=r"^[a-z0-9][a-z0-9-]{0,30}$")
    base_url: str = Field(pattern=r"^https?://")
    bearer_token_file: Path | None = None
    patient_identifier_systems: Mapping[str, str] = Field(default_factory=dict)
    timeout_s: float = Field(default=30.0, gt=0)
    oauth2: FhirOAuth2Settings | None = None
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    vn_core: bool = False

    @model_validator(mode="after")
    def _one_token(self) -> FhirSettings:
        if self.oauth2 is not None and self.bearer_token_file is not None:
            raise ValueError("set either bearer_token_file or oauth2")
        return self

    @model_validator(mode="after")
    def _certificate_with_key(self) -> FhirSettings:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("set both tls_certificate and tls_key, or neither")
        return self


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
        if self.host not in LOCAL and self.tls_certificate is None:
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
    database_url: DatabaseUrl = ""  # default: SQLite in the data folder
    site: SiteSettings = SiteSettings()
    dicom: DicomSettings = DicomSettings()
    completeness: CompletenessSettings = CompletenessSettings()
    orders: OrdersSettings | None = None
    worklist: WorklistSettings | None = None
    stow: StowSettings | None = None
    watched_folder: WatchedFolderSettings | None = None
    retention: RetentionSettings = RetentionSettings()
    reconciliation: ReconciliationSettings = ReconciliationSettings()
    watchdog: WatchdogSettings = WatchdogSettings()
    delivery: DeliverySettings = DeliverySettings()
    priority: PrioritySettings = PrioritySettings()
    archives: tuple[ArchiveSettings, ...] = ()
    hl7: Hl7Settings | None = None
    fhir: FhirSettings | None = None
    mlflow: MlflowSettings | None = None
    inference: InferenceSettings = InferenceSettings()
    web: WebSettings = WebSettings()
    logs: LogSettings = LogSettings()
    retry_delays_s: tuple[float, ...] = (1, 5, 30, 120, 600, 3600)

    @model_validator(mode="after")
    def _certificate_for_archives(self) -> EdgeSettings:
        if any(archive.tls for archive in self.archives) and self.dicom.tls_ca is None:
            raise ValueError("archives.tls needs tls_certificate, tls_key and tls_ca of dicom")
        return self

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


def digest(settings: EdgeSettings) -> str:
    """Twelve digits that change with any value: which settings was it that ran?"""
    return hashlib.sha256(settings.model_dump_json().encode()).hexdigest()[:12]


def read_settings(path: Path) -> EdgeSettings:
    """Read and check a settings file.

    Raises:
        SettingsError: no file that can be read, not TOML, or a value that cannot be; the text says
            which.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(f"{path}: no such file. `phoi edge init` writes one.") from None
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
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
