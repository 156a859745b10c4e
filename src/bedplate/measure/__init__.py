"""Whether it held: comparisons of a model with what one would do without it."""
