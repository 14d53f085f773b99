"""``phoi models import``: detectors that were made elsewhere become signed bundles."""
