"""The command line's longer commands, one file each. They know the clients and rooms by public names."""
