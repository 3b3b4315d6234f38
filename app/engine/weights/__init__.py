"""Reading models from disk: GGUF files and folders of safetensors."""

from app.engine.weights.checkpoint import Checkpoint, Damaged, open_checkpoint
from app.engine.weights.digest import digest

__all__ = ["Checkpoint", "Damaged", "digest", "open_checkpoint"]
