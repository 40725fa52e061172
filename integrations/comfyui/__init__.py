"""Nodes for ComfyUI. Copy or link this folder to ComfyUI/custom_nodes/msg_jax, where `pip install msg_jax` was run."""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
