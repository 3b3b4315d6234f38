"""A chat app: the author's, or the built-in one."""

from __future__ import annotations

from app.chat.builtin import builtin
from app.chat.hooks import ChatApp
from app.chat.loader import load

__all__ = ["ChatApp", "builtin", "load"]
