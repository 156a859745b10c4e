"""`load`: a model, ready to use."""

from bedplate.hub.model import load

__all__ = ["load"]
