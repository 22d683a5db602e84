"""What an artifact becomes for others: so far, its model card."""
