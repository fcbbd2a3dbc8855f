"""What is installed and what a model file holds."""
