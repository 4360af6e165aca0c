"""What other libraries need, imported only when asked for."""
