"""The questions of the scripts beside this folder, one a file, each with those who answer it.

Only numpy is imported at the top of these files: a worker loads its own libraries and no other, and
``KERAS_BACKEND`` has to be set before Keras is imported.
"""
