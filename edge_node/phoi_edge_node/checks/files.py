"""The settings file, the data folder, and the files that settings name."""

from __future__ import annotations

import os
import pwd
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from sqlalchemy import make_url

from phoi_edge_node.checks.finding import Finding, found
from phoi_edge_node.checks.network import SOON_DAYS
from phoi_edge_node.settings import EdgeSettings

_OTHERS = 0o007


def check_settings_file(settings: EdgeSettings, path: Path) -> Iterator[Finding]:
    """Nobody else may read a password in it."""
    if _has_password(settings.database_url) and path.exists() and path.stat().st_mode & _OTHERS:
        yield found("settings.open", "settings", path=path)
    else:
        yield found("settings.good", "settings")


def _has_password(database_url: str) -> bool:
    if not database_url:
        return False
    url = make_url(database_url)
    return url.password is not None or "password" in url.query


def check_data_folder(data: Path) -> Iterator[Finding]:
    """Whose is it, and who may look?"""
    if not data.is_dir():
        return
    state, user = data.stat(), os.geteuid()
    if state.st_uid != user:
        owner = _user(state.st_uid)
        yield found("data.other_owner", "data", owner=owner, user=_user(user))
    if state.st_mode & _OTHERS:
        yield found("data.open", "data", path=data)
    elif state.st_uid == user:
        yield found("data.good", "data")


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


# --- secrets ---------------------------------------------------------------------------------


def check_secrets(settings: EdgeSettings) -> Iterator[Finding]:
    """Tokens and secrets: there, not empty, and for nobody else."""
    for setting, path in _secrets(settings):
        yield _check_secret(setting, path)


def _secrets(settings: EdgeSettings) -> Iterator[tuple[str, Path]]:
    if settings.stow:
        yield "stow.bearer_token_file", settings.stow.bearer_token_file
    if settings.fhir and settings.fhir.bearer_token_file:
        yield "fhir.bearer_token_file", settings.fhir.bearer_token_file
    oauth2 = settings.fhir.oauth2 if settings.fhir else None
    if oauth2 and oauth2.client_secret_file:
        yield "fhir.oauth2.client_secret_file", oauth2.client_secret_file
    if oauth2 and oauth2.private_key_file:
        yield "fhir.oauth2.private_key_file", oauth2.private_key_file
    if settings.mlflow and settings.mlflow.token_file:
        yield "mlflow.token_file", settings.mlflow.token_file
    for archive in settings.archives:
        if archive.bearer_token_file:
            yield f"archives.{archive.name}.bearer_token_file", archive.bearer_token_file


def _check_secret(setting: str, path: Path) -> Finding:
    try:
        content, mode = path.read_bytes(), path.stat().st_mode
    except FileNotFoundError:
        return found("file.missing", "file", setting, path=path, setting=setting)
    except OSError:
        return found("file.unreadable", "file", setting, path=path)
    if not content.strip():
        return found("file.empty", "file", setting, path=path)
    if mode & _OTHERS:
        return found("file.open", "file", setting, path=path)
    return found("file.good", "file", setting)


# --- certificates ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pair:
    """A certificate of ours with its key; ``setting`` names the section."""

    setting: str
    certificate: Path
    key: Path


def check_certificates(settings: EdgeSettings, now: datetime) -> Iterator[Finding]:
    """Readable, in their time, with the right key that nobody else can read."""
    for pair in _pairs(settings):
        yield from _check_pair(pair, now)
    for setting, path in _authorities(settings):
        yield from _check_certificate(setting, path, now)
    inference = settings.inference
    if inference.tls_certificate and inference.tls_ca:
        yield from _check_issuer("inference", inference.tls_certificate, inference.tls_ca)
    if settings.web.tls_certificate:
        yield from _check_names(settings.web.tls_certificate)


def _pairs(settings: EdgeSettings) -> Iterator[_Pair]:
    sections = {
        "dicom": settings.dicom,
        "web": settings.web,
        "hl7": settings.hl7,
        "fhir": settings.fhir,
        "orders": settings.orders,
        "inference": settings.inference,
    }
    for name, section in sections.items():
        if section is not None and section.tls_certificate and section.tls_key:
            yield _Pair(name, section.tls_certificate, section.tls_key)


def _authorities(settings: EdgeSettings) -> Iterator[tuple[str, Path]]:
    for name, section in (
        ("dicom", settings.dicom),
        ("hl7", settings.hl7),
        ("fhir", settings.fhir),
        ("orders", settings.orders),
        ("inference", settings.inference),
    ):
        if section is not None and section.tls_ca:
            yield f"{name}.tls_ca", section.tls_ca


def _check_pair(pair: _Pair, now: datetime) -> Iterator[Finding]:
    setting = f"{pair.setting}.tls_certificate"
    yield from _check_certificate(setting, pair.certificate, now)
    certificates = _read(pair.certificate)
    if certificates:
        yield from _check_key(f"{pair.setting}.tls_key", pair.key, certificates[0])


def _check_certificate(setting: str, path: Path, now: datetime) -> Iterator[Finding]:
    if not os.access(path, os.R_OK):
        yield found("certificate.missing", "certificate", setting, path=path, setting=setting)
        return
    certificates = _read(path)
    if not certificates:
        yield found("certificate.not_pem", "certificate", setting, path=path)
        return
    until = min(certificate.not_valid_after_utc for certificate in certificates)
    since = max(certificate.not_valid_before_utc for certificate in certificates)
    days = (until - now).days
    values = {"until": f"{until:%Y-%m-%d}", "path": path}
    if now > until:
        yield found("certificate.expired", "certificate", setting, **values)
    elif now < since:
        yield found("certificate.early", "certificate", setting, since=f"{since:%Y-%m-%d %H:%M}")
    elif days < SOON_DAYS:
        yield found("certificate.soon", "certificate", setting, days=days, **values)
    else:
        yield found("certificate.good", "certificate", setting, **values)


def _read(path: Path) -> list[x509.Certificate]:
    """The certificates of a PEM file; none where it is none."""
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):
        return []


def _check_key(setting: str, path: Path, certificate: x509.Certificate) -> Iterator[Finding]:
    values = {"path": path}
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        mode = path.stat().st_mode
    except OSError:
        yield found("certificate.missing", "certificate", setting, setting=setting, **values)
        return
    except TypeError:
        yield found("certificate.key_password", "certificate", setting, **values)
        return
    except ValueError:
        yield found("certificate.not_pem", "certificate", setting, **values)
        return
    if key.public_key() != certificate.public_key():
        yield found("certificate.key_mismatch", "certificate", setting, **values)
    if mode & _OTHERS:
        yield found("certificate.key_open", "certificate", setting, **values)


def _check_issuer(section: str, path: Path, authority: Path) -> Iterator[Finding]:
    """Both ends show certificates of one authority, so ours must come from it too."""
    chain, roots = _read(path), _read(authority)
    if not chain or not roots:
        return
    if not any(_issued(chain[-1], root) or chain[-1] == root for root in roots):
        setting = f"{section}.tls_certificate"
        yield found("certificate.other_authority", "certificate", setting, path=authority)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check_names(path: Path) -> Iterator[Finding]:
    for certificate in _read(path)[:1]:
        try:
            certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        except x509.ExtensionNotFound:
            yield found("certificate.no_names", "certificate", "web.tls_certificate")
