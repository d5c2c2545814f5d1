"""The applications of recurrent networks, one file each; see the README beside this."""
