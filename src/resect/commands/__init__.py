"""What the commands do: the glue between the command line and the stages; nothing here computes."""
