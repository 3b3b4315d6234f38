"""The engine: a host that speaks with the log, and a core process that computes."""
