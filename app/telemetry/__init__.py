"""Spans for OpenTelemetry, made of the log: runs, their steps, and the requests of both."""
