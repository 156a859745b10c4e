"""The command line: one file a verb that parses, calls the verb of `bedplate.api` and prints."""
