"""The only room that knows lmms-eval: the plugin, the model that it runs, its tasks, and what a run leaves on disk."""
