"""Janus: reads images through SigLIP, writes text; its own way of drawing ignores images."""
