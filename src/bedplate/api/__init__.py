"""The verbs, one function a file, each exported lazily as `bedplate.VERB`."""
