"""What the contract knows of the cluster's part of a spec is what the operator has there."""

import re

import pytest

from trl_contract import cluster
from trl_contract.base import KINDS
from trl_contract.training import SPECS
from trl_operator import constants
from trl_operator.api import rules
from trl_operator.api.cluster import ClusterSpec
from trl_operator.api.kinds import KINDS as KIND_INFOS
from trl_operator.plan.topology import gpus_per_node, processes_per_node

STORAGE = {"storage": {"size": "1Gi"}}
SPEC_PARTS = [
    {},
    {"numProcPerNode": 4, "numNodes": 3},
    {"resources": {"limits": {"nvidia.com/gpu": 8, "memory": "1Gi"}}},
    {"resources": {"limits": {"nvidia.com/mig-1g.10gb": "2"}}},
    {"resources": {"limits": {"amd.com/gpu": 2}}},
    {"resources": {"limits": {"cpu": 2, "memory": "1Gi"}}},
]


def test_the_cluster_fields_are_those_of_the_operator() -> None:
    assert {field.alias for field in ClusterSpec.model_fields.values()} == cluster.CLUSTER_FIELDS


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_is_both_the_clusters_and_the_trainers(kind: str) -> None:
    training = {field.alias for field in SPECS[kind].model_fields.values()}
    assert not training & cluster.CLUSTER_FIELDS
    assert {field.alias for field in KIND_INFOS[kind].spec.model_fields.values()} == training | cluster.CLUSTER_FIELDS


@pytest.mark.parametrize("part", SPEC_PARTS, ids=str)
def test_processes_and_gpus_are_counted_as_the_operator_counts_them(part: dict) -> None:
    found, wanted = cluster.Cluster.model_validate(part), ClusterSpec.model_validate(STORAGE | part)
    assert found.num_nodes == wanted.num_nodes
    assert found.processes_per_node == processes_per_node(wanted)
    assert found.num_gpus == gpus_per_node(wanted)


def test_names_and_versions_are_those_of_the_operator() -> None:
    assert constants.API_VERSION == cluster.API_VERSION
    assert f"size() <= {cluster.MAX_NAME_LENGTH} " in rules.NAME_RULE["rule"]
    assert re.escape(cluster.NAME_PATTERN) in re.escape(rules.NAME_RULE["rule"])
