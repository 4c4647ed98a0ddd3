"""What holds of a job holds of one that runs as a TrainJob: the same tests. rest_of_suite.py has the others."""

from test_failures import (  # noqa: F401
    test_a_failure_of_the_users_making_ends_the_job_with_reason_and_hint,
    test_a_workload_that_somebody_suspends_waits_and_goes_on_at_no_cost,
)
from test_pods import (  # noqa: F401
    test_all_that_a_job_says_of_its_pods_is_there_in_the_pods,
)
from test_starting import (  # noqa: F401
    test_a_quota_that_is_used_up_is_told_and_the_job_starts_when_there_is_room,
    test_our_pods_pass_pod_security_restricted,
)
from test_suspend import (  # noqa: F401
    test_a_suspended_job_rests_without_pods_and_goes_on_at_no_cost,
)
