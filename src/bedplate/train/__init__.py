"""Training: one loop that never knows the task."""
