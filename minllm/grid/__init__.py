"""`run.py -m`: every combination of the values given, in processes of their own."""
