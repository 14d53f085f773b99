"""Who may sign in, and how a password is kept. Pure but for the randomness of salts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import argon2

_HASHER = argon2.PasswordHasher()  # argon2id, RFC 9106's low-memory profile: 64 MiB, 3 passes

MINIMUM_PASSWORD_LENGTH = 10


class Role(StrEnum):
    """What an account may do. An admin may do all that a reviewer may."""

    REVIEWER = "reviewer"
    ADMIN = "admin"


@dataclass(frozen=True)
class Account:
    """One named person.

    Attributes:
        username: stable, [a-z0-9._-]; what dispositions and the audit name.
        display_name: what documents and pages show.
    """

    username: str
    display_name: str
    role: Role


def hash_password(password: str) -> str:
    """The argon2id hash to store, in PHC string format, with its own salt and parameters.

    Raises:
        ValueError: shorter than ``MINIMUM_PASSWORD_LENGTH`` characters.
    """
    if len(password) < MINIMUM_PASSWORD_LENGTH:
        raise ValueError(f"a password has at least {MINIMUM_PASSWORD_LENGTH} characters")
    return _HASHER.hash(password)


def password_matches(stored_hash: str | None, password: str) -> bool:
    """Does the password belong to the hash?

    Args:
        stored_hash: None where the account does not exist or is closed: the answer is then
            False, after the same work, so that time does not tell which usernames exist.
    """
    try:
        _HASHER.verify(stored_hash or _nobody(), password)
    except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError):
        return False
    return stored_hash is not None


@cache
def _nobody() -> str:
    return _HASHER.hash("nobody has this password")
