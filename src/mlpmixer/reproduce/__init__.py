"""The paper as commands: each experiment is a name in EXPERIMENTS, a file of its own, and a folder that holds its page.

    reproduce.run("table1")                 writes results/table1/small/README.md, table.json and plots
    reproduce.cifar10_transfer.reproduce("cifar10-transfer", ["B/16:imagenet21k"])

`experiment` is the frame: names, scales, runs that are resumed, the time that a piece may take. `page` writes what was
found. To add an experiment, add its entry to EXPERIMENTS and a file with a function `run(lab: Lab) -> Page`.
"""

from mlpmixer.reproduce.cifar10_transfer import TABLES
from mlpmixer.reproduce.experiment import EXPERIMENTS, Experiment, Lab, OutOfTime, run
from mlpmixer.reproduce.page import Cells, Page, Plot

__all__ = ["EXPERIMENTS", "TABLES", "Cells", "Experiment", "Lab", "OutOfTime", "Page", "Plot", "run"]
