"""Training: recipes, the loop, and what one update is made of."""
