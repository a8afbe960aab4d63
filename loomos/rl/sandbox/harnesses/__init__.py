"""What runs in the sandbox around the code. Standard library only; never imported outside."""
