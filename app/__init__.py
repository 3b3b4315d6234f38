"""Everlog: a chat service whose only truth is an event log."""

__version__ = "0.1.0"
