"""Files that nothing is lost by: written whole, read without running what is in them."""
