"""How well a model does: studies, systems, tasks, metrics, results."""
