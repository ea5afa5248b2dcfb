"""What a program costs: planned from what the compiler says, or measured on the devices that are there."""
