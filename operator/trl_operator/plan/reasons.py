"""Why attempts fail, what to do about it, and whether another attempt can help."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reason:
    """`retryable`: another attempt may succeed. `free`: it does not count against maxRestarts.

    `effect`: it follows from another rank's failure, which is the cause if there is one.
    """

    hint: str
    retryable: bool = False
    free: bool = False
    effect: bool = False


REASONS: dict[str, Reason] = {
    "InvalidSpec": Reason("Correct the field that the message names and create a new job."),
    "DataFormatError": Reason(
        "Correct the row that the message names, or allow some bad rows with dataset.maxBadRows."
    ),
    "DatasetNotFound": Reason("Check dataset.train and dataset.eval: claim, path, repository, split and spelling."),
    "ModelNotFound": Reason("Check model: claim, path, repository, revision and spelling."),
    "ArtifactChanged": Reason(
        "What an earlier job has left was changed: restore it, or run that job anew, and then create a new job."
    ),
    "AccessDenied": Reason("Check the Secret in tokenSecretRef and the rights of its token."),
    # policy/memory.py says more of both, and of another attempt with a smaller batch.
    "OutOfGPUMemory": Reason("Halve training.perDeviceBatchSize and double gradientAccumulationSteps."),
    "OutOfHostMemory": Reason(
        "Do what the message says, raise resources.limits.memory, or use a smaller model or batch; /dev/shm counts too."
    ),
    "NonFiniteLoss": Reason("Lower training.learningRate or training.maxGradNorm, and look for odd rows in the data."),
    "RewardError": Reason("Correct the reward that the message names; onError: zero counts errors as 0."),
    "RewardUnavailable": Reason("Check that the reward's service answers.", retryable=True),
    "NetworkUnavailable": Reason(
        "Look at the network between the pod and the server in the message, and at the server's name.",
        retryable=True,
        free=True,
    ),
    "CheckpointCorrupt": Reason("Look at the storage: no checkpoint of this job could be read.", retryable=True),
    "StorageFull": Reason("Make room on the storage volume or enlarge it, and create a new job."),
    "StorageNotWritable": Reason(
        "Use a volume that the uid in the message can write, and that renames files and folders (NFS, CephFS, Lustre,"
        " block storage), not an object store's mount."
    ),
    "CommunicationTimeout": Reason(
        "Look at the network between the pods and at slow nodes.", retryable=True, effect=True
    ),
    "Stalled": Reason(
        "Look at what the message names, and at the stacks in the pod's log: it did nothing for stallTimeoutSeconds.",
        retryable=True,
    ),
    "PeerLost": Reason("Look at the other pods of the attempt.", retryable=True, effect=True),
    "ChildDeleted": Reason("Do not delete the pods or the workload of a running job.", retryable=True),
    "Evicted": Reason("Raise the resources that the message names.", retryable=True),
    "NodeLost": Reason("Nothing to do: the node went away.", retryable=True, free=True),
    "Preempted": Reason("Nothing to do: the pod had to give way.", retryable=True, free=True, effect=True),
    "StartTimeout": Reason(
        "Make room for all pods of the job at once, or use fewer nodes: a pod ended, or found no node, before all had"
        " started.",
        retryable=True,
        free=True,
    ),
    "EvictedByKueue": Reason("Nothing to do: it goes on when Kueue has room again.", retryable=True, free=True),
    "QueueChanged": Reason("Nothing to do: it waits in the other queue.", retryable=True, free=True),
    "UpstreamFailed": Reason("Look at the job that the message names, correct it, and create a new job."),
    "RewardModelNotValidated": Reason(
        "Train a better reward model, or lower the minAccuracy that the message names; a GRPOJob may set"
        " acknowledgeUnvalidated."
    ),
    "DeadlineExceeded": Reason("Raise runPolicy.activeDeadlineSeconds."),
    "Unknown": Reason(
        "Read the log below and the pod's own log. If they do not say what to change, send both, and resolved.json of"
        " the job's folder, to the maintainers of trl-operator.",
        retryable=True,
    ),
}

MAX_UNTOLD_IN_A_ROW = 1
"""So often an attempt of which nothing is left that says why it failed is free."""
MAX_FREE_IN_A_ROW = 5
"""So many free restarts in a row without a newer checkpoint; the next one counts."""
