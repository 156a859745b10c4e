"""Models: one file a system, each a thin composition over `nn.Trunk`."""
