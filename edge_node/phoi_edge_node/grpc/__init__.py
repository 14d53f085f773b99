"""``phoi.inference.v1``: asking workers, and serving them voxels and bundles."""
