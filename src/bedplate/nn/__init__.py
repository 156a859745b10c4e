"""The one Transformer: spans, the mask rule, attention, blocks, the trunk, its cache and its heads."""
