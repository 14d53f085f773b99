"""From files to a ``Volume``: DICOM series, and the file formats of research.

Nothing of a file's own format leaves this package.
"""
