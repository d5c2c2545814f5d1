"""Public recurrent language models, read, run, trained and written on rnnjax's public parts."""
