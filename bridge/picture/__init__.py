"""A call, made visible from its trace: a view, a recording, problems, a page."""
