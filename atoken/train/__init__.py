"""The training room: losses, stages as data, the objective, the engine, the loop."""
