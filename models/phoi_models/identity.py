"""Which model said it."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class ModelIdentity:
    """Names one trained model exactly.

    Attributes:
        name: registered model name, for example ``phoi-lung-nodule``.
        version: human version, for example ``1.0.0``.
        bundle_hash: SHA-256 (hex) of the bundle's manifest payload: covers weights, pre- and
            post-processing parameters and operating points.
        operating_point: name of the threshold set in use, for example ``default``.
    """

    name: str
    version: str
    bundle_hash: str
    operating_point: str = "default"

    def is_any_of(self, names: Collection[str]) -> bool:
        """Is it named by one of these: "NAME", for every version, or "NAME@VERSION"?"""
        return not {self.name, f"{self.name}@{self.version}"}.isdisjoint(names)

    @property
    def device_uid(self) -> str:
        """UID for Device UID (0018,1002): changes with every retraining.

        A UUID-derived UID (PS3.5 B.2) from the bundle's hash, so every node derives the same.
        """
        return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, 'phoi-bundle:' + self.bundle_hash).int}"
