"""A vision-language model on the frozen tower: SlowFast-LLaVA-1.5 for images, videos and 3D assets."""
