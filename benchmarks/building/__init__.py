"""What `benchmarks/build.py` measures: stages of a build, processes, memory, on a source and models made here."""
