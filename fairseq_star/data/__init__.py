"""What a distillation run is made of beside model, task and criterion: data, checks before it, watches in it, cache."""
