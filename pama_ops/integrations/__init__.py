"""What other libraries need to work with this one: a module for each, imported only by name."""
