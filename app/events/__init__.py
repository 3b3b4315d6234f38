"""The event log: envelope, catalogue, stores, feed, seals. Imports nothing of the rest."""
