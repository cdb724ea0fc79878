"""Registered models; fairseq imports every file here."""
