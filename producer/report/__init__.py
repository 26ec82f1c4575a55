"""Outcomes become one JSON document and one HTML file. Pure, but for the writing of files."""
