"""The edge: one port for HTTP, raw WebSockets and the UI."""
