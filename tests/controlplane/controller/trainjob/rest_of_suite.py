"""The tests of jobs that test_suite.py leaves to `make test-backends`: they take two minutes."""

from test_failures import (  # noqa: F401
    test_a_failed_worker_restarts_the_gang_exactly_once,
    test_a_finished_job_is_left_alone_and_deleted_after_its_ttl,
    test_a_job_out_of_restarts_fails_with_the_last_cause,
    test_a_job_over_its_deadline_is_stopped_and_fails,
    test_a_lost_node_is_free_and_the_job_goes_on_elsewhere,
    test_a_pod_deleted_by_force_restarts_the_gang_though_its_workload_goes_on,
    test_a_training_that_reports_the_same_step_for_the_stall_timeout_is_ended_and_starts_again,
    test_a_worker_pod_deleted_by_hand_costs_a_restart_and_is_told_as_that,
    test_a_workload_deleted_by_hand_is_a_failed_attempt,
    test_an_out_of_memory_kill_names_the_memory_limit,
    test_deleting_a_job_removes_every_child_but_the_retained_claim,
)
from test_starting import (  # noqa: F401
    test_of_two_gangs_that_hold_each_others_nodes_the_younger_gives_way,
)
from test_suspend import (  # noqa: F401
    test_a_cancelled_job_ends_and_stays_ended,
    test_a_job_created_suspended_starts_when_it_is_let_go,
)
