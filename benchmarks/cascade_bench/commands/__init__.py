"""The verbs of `cascade-bench`: one module each, with a click command named `command`."""
