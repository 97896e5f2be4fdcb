"""Training of the small LLaVA checkpoints that the package ships: settings, data, stages, packed training, manifest."""
