"""BAGEL (arXiv 2505.14683) and its fine-tune ThinkMorph, from their published description."""
