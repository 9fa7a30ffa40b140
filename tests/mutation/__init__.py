# Mutation testing of the package: `python -m tests.mutation`.
#
# A mutant is the package with one small fault put into it. A suite that passes all the same does
# not see that fault. Nothing is ever written into the source tree: the fault is made while a forked
# child imports the package.
#
# mutmut leaves decorated functions and constants of modules as they are, which are most of what
# matters here; cosmic-ray runs all tests for each mutant, and writes into the tree.
