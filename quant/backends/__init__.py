"""What executes quantized denoisers, one file each. Must not know how the integers were chosen."""
