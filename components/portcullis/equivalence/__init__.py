"""What ships must behave as what was judged."""
