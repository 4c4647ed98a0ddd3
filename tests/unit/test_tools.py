"""The pins of what the dev cluster consists of."""

import re

from devcluster import paths


def test_go_modules_have_one_version_in_all_trees_that_share_compiled_packages() -> None:
    """Go compiles a package once for all of them, if nothing below it differs. BuildKit's tree is too old for that."""
    trees = sorted(path for path in paths.TOOLS.glob("*/go.mod") if path.parent.name != "buildkit")
    found: dict[str, dict[str, str]] = {}
    for path in trees:
        for module, version in re.findall(r"^(?:require|\t)\s*(\S+) (v\S+)", path.read_text(), re.M):
            found.setdefault(module, {})[path.parent.name] = version
    # Kueue is what its authors have released: with the types of these two that it was written for.
    own = ("github.com/kubeflow/trainer/v2", "github.com/kubeflow/training-operator")
    differing = {module: by for module, by in found.items() if len(set(by.values())) > 1 and module not in own}
    assert differing == {}, "raise the lower ones, in hack/tools/NAME: go get MODULE@VERSION"
    assert len([by for by in found.values() if len(by) > 1]) > 100
