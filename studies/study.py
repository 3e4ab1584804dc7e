"""Runs a study of the plan in studies/plan.py: the recipe and its controls, over data sets, budgets and seeds.

Every run is one of our programs in a process of its own, and ends in a row of the CSV. What has a row is run again only
where its files are gone and another run needs them, a training that was interrupted goes on where it stopped: start the
same command again after whatever happened.

    python studies/study.py --preset bccd
    python studies/study.py --preset hands --data hands=my.data --only seed0 --list
"""

import argparse
import re
import sys
from pathlib import Path

if not __package__:  # run as `python studies/study.py`: the repository root is not on the path yet
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from studies.plan import PLAN, add_data_option, data_sets, jobs
from studies.runner import Results, has_ended, listing, run_all, selected, to_do
from studies.times import add_times, add_times_options
from utils.cli import ArgumentParser, run


def get_args_parser() -> argparse.ArgumentParser:
    """The options of study.py."""
    parser = ArgumentParser(__doc__.split("\n\n")[0])
    parser.add_argument("--preset", nargs="+", choices=PLAN, default=["hands"], help="which parts of the plan")
    parser.add_argument("--only", type=re.compile, help="only runs whose id this regular expression finds")
    add_times_options(parser)
    parser.add_argument("--list", action="store_true", help="only list the runs and the hours")
    parser.add_argument("--results", type=Path, default=Path("studies/results.csv"), help="the CSV to add to")
    add_data_option(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Run what is not done, in order; go on after a failure with what does not need it."""
    experiments = [experiment for preset in args.preset for experiment in PLAN[preset]]
    chosen = selected(jobs(experiments, data_sets(args.data)), args.only)
    results = Results(args.results)
    todo = to_do(chosen, results.done())
    if args.list:
        print(listing(chosen, todo, results.done()))
        return
    run_all(chosen, todo, results)
    for data in {job.data.name: job.data for job in chosen}.values() if args.times else ():
        here = [job for job in chosen if job.data == data and has_ended(job.id)]
        add_times(here, results, args.runtimes, args.threads)


if __name__ == "__main__":
    run(get_args_parser(), main)
