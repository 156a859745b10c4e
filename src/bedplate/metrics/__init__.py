"""Pure functions from predictions to values with intervals."""
