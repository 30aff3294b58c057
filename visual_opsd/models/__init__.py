"""Unified multimodal models behind one interface, a folder a family."""
