"""The HTTP API that OpenAI's clients speak, in front of the same log and engine.

Pure cores translate: what a client sends into requests of the log, and events of the log into what
it gets back. `call` and `reply` are the shell: they queue, follow and cancel. One module for each
endpoint; `routes` has them all.
"""
