"""What each command of the command line does; a file is imported when its command is called."""
