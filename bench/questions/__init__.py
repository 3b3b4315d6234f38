"""Questions that the design of the log left open, answered in docs/measurements.md."""
