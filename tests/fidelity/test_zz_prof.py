import cProfile, pstats
from tests.fidelity.test_kill_at_every_statement import *
def test_prof(site, tools, dying):
    pr = cProfile.Profile(); pr.enable()
    test_a_migration_onto_a_dataset_that_is_there_may_die_anywhere(site, tools, dying)
    pr.disable(); pstats.Stats(pr).sort_stats("cumtime").print_stats(35)
