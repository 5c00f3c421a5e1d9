"""Elementwise operators: one scalar function per entry, one small file per family."""
