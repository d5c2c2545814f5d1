# A program that `test_sharding` starts; importing it would run it.
collect_ignore = ["sharded_run.py"]
