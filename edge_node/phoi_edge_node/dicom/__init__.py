"""DICOM: receive, read, choose, send. No ``Dataset`` leaves this package."""
