"""Rows of data files to what training sees. See the modules of this package."""
