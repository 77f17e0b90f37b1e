"""The paper as commands: each experiment is a name in EXPERIMENTS, a function in a file of its own, and a page.

    reproduce.run("table1")     writes results/table1/small/README.md, table.json and plots

`experiment` is the frame: names, scales, runs that can be resumed, a time limit. `page` writes the findings. To add an
experiment, add an entry to EXPERIMENTS and write its function, from an ExperimentContext to a Page.
"""

from mlpmixer.reproduce.experiment import EXPERIMENTS, ExperimentContext, OutOfTime, Overrides, run

__all__ = ["EXPERIMENTS", "ExperimentContext", "OutOfTime", "Overrides", "run"]
