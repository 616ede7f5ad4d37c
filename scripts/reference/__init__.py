"""Generates the tables of docs/reference from the code, so that they are never stale."""
