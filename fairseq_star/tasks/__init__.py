"""Registered tasks; fairseq imports every file here."""
