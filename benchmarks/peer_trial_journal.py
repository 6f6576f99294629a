"""Run with the Python of the peer's environment by peer_trial.py: prints the trials in heretic's journal as one line of JSON.

PEER_PYTHON peer_trial_journal.py JOURNAL.jsonl
"""

import json
import sys

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (study,) = JournalStorage(JournalFileBackend(sys.argv[1])).get_all_studies()
    trials = optuna.load_study(study_name=study.study_name, storage=JournalStorage(JournalFileBackend(sys.argv[1]))).trials
    rows = [
        {
            "start": trial.datetime_start.isoformat(),
            "seconds": (trial.datetime_complete - trial.datetime_start).total_seconds(),
            "refusals": trial.user_attrs["refusals"],
            "prompts": trial.user_attrs["n_bad_prompts"],
            "base_refusals": trial.user_attrs["base_refusals"],
            "kl": trial.user_attrs["kl_divergence"],
            "direction_index": trial.user_attrs["direction_index"],
            "parameters": trial.user_attrs["parameters"],
        }
        for trial in trials
        if trial.datetime_start and trial.datetime_complete and trial.state == optuna.trial.TrialState.COMPLETE
    ]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
