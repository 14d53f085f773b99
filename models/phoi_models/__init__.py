"""Networks, pre- and post-processing, bundles. Only ``phoi_models.networks`` needs torch."""
