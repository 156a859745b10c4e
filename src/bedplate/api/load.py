"""`load`: a model, ready to use."""

from bedplate.hub.load import load

__all__ = ["load"]
