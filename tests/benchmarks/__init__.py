"""Speed and accuracy beside other solvers: `pip install '.[bench]' && python -m tests.benchmarks`. Not a test."""
