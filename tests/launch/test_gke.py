"""The JobSet's manifest, and gke.sh with a stand-in kubectl."""

import pytest
import yaml

from msg_jax.infra import preemption, runtime
from tests.launch.stand_ins import ARGUMENTS

# The fields of the JobSet and of its pods, all of them required, with their types. A list has one item or more of its first.
SCHEMA = {
    "apiVersion": str, "kind": str, "metadata": {"name": str, "annotations": {
        "alpha.jobset.sigs.k8s.io/exclusive-topology": str, "checksum": str}},
    "spec": {
        "failurePolicy": {
            "maxRestarts": int, "rules": [{"name": str, "action": str, "onJobFailureReasons": [str]}]},
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": {
            "parallelism": int, "completions": int, "backoffLimit": int,
            "podFailurePolicy": {"rules": [
                {"action": str, "onExitCodes": {"containerName": str, "operator": str, "values": [int]}}]},
            "template": {
                "metadata": {"annotations": {
                    "gke-gcsfuse/volumes": str, "gke-gcsfuse/cpu-limit": str, "gke-gcsfuse/memory-limit": str,
                    "gke-gcsfuse/ephemeral-storage-limit": str}},
                "spec": {
                    "restartPolicy": str, "terminationGracePeriodSeconds": int, "serviceAccountName": str,
                    "nodeSelector": {
                        "cloud.google.com/gke-tpu-accelerator": str, "cloud.google.com/gke-tpu-topology": str},
                    "containers": [{
                        "name": str, "image": str, "workingDir": str, "command": [str], "args": [str],
                        "env": [{"name": str, "value": str}], "resources": {"limits": {"google.com/tpu": int}},
                        "volumeMounts": [{"name": str, "mountPath": str}]}],
                    "volumes": [{"name": str, "csi": {
                        "driver": str, "volumeAttributes": {"bucketName": str, "mountOptions": str}}}],
                },
            },
        }}}],
    },
}


def _check(value, schema, path=""):
    if isinstance(schema, dict):
        assert isinstance(value, dict) and value.keys() == schema.keys(), path
        for key in schema:
            _check(value[key], schema[key], f"{path}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list) and value, path
        for item in value:
            _check(item, schema[0], f"{path}[]")
    else:
        assert type(value) is schema, path


@pytest.fixture
def manifest(stand_ins) -> dict:
    return yaml.safe_load(stand_ins.run("gke.sh", "--dry_run", "--", *ARGUMENTS)[1])


def test_the_manifest_has_the_fields_of_a_jobset(manifest):
    _check(manifest, SCHEMA)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")


def test_the_slice_is_one_job_with_a_pod_for_each_host(manifest):
    assert manifest["metadata"]["annotations"]["alpha.jobset.sigs.k8s.io/exclusive-topology"] == "cloud.google.com/gke-nodepool"
    (job,) = manifest["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    assert job["parallelism"] == job["completions"] == 64
    (container,) = job["template"]["spec"]["containers"]
    assert container["args"] == ARGUMENTS and container["resources"]["limits"]["google.com/tpu"] == 4
    env = {each["name"]: each["value"] for each in container["env"]}
    assert (env["JAX_NUM_PROCESSES"], env["JAX_NUM_DEVICES"]) == ("64", "256")


def test_the_bucket_is_mounted_without_caches_and_with_renaming(manifest):
    pod = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
    assert pod["metadata"]["annotations"]["gke-gcsfuse/volumes"] == "true"
    (volume,), (container,) = pod["spec"]["volumes"], pod["spec"]["containers"]
    assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "bucket"
    options = volume["csi"]["volumeAttributes"]["mountOptions"].split(",")
    assert {"metadata-cache:ttl-secs:0", "metadata-cache:negative-ttl-secs:0", "rename-dir-limit=200000"} <= set(options)
    places = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert places == {"/workdir": volume["name"], f"{container['workingDir']}/runs": volume["name"]}


def test_a_mistake_of_the_user_ends_the_jobset_and_a_preemption_restarts_it(manifest):
    policy, job = manifest["spec"]["failurePolicy"], manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [("FailJobSet", ["PodFailurePolicy"])]
    (rule,) = job["podFailurePolicy"]["rules"]
    codes = rule["onExitCodes"]
    assert (rule["action"], codes["operator"]) == ("FailJob", "In")
    assert codes["containerName"] == job["template"]["spec"]["containers"][0]["name"]
    assert runtime.USER_ERROR in codes["values"]
    assert not {preemption.EXIT_CODE, runtime.LOST_PROCESS} & set(codes["values"])
    assert policy["maxRestarts"] == 100 and job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # pod failure policies need it


def _run(stand_ins, existing="", pods=("msg-slice-0-0-a\n",), states=("Completed",)):
    """Exit code, errors and the calls of kubectl, in short."""
    stand_ins.answering("kubectl", **{
        r"get jobset msg .*checksum": [existing], "get jobset": list(states), "get pods": list(pods), "logs": ["step 1\n"],
    })
    code, _, err = stand_ins.run("gke.sh", POLL_SEC="0.01")
    return code, err, [" ".join(call.split()[1:4]) for call in stand_ins.calls]


def test_the_output_is_followed_once_there_is_a_pod(stand_ins):
    code, err, calls = _run(stand_ins, pods=("", "", "msg-slice-0-0-a\n"), states=("", "", "", "Completed"))
    assert (code, err) == (0, "")
    first_pod = "jobset.sigs.k8s.io/jobset-name=msg,batch.kubernetes.io/job-completion-index=0"
    look = ["get jobset msg", f"get pods --selector={first_pod}"]
    assert calls == ["get jobset msg", "apply -f -", *look * 3, "logs --follow msg-slice-0-0-a", *look]
    assert 'status.phase!="Pending"' in stand_ins.calls[3]


def test_the_pod_of_a_restart_is_followed_too_and_a_failure_is_an_error(stand_ins):
    both = "msg-slice-0-0-a\nmsg-slice-0-0-b\n"
    code, err, calls = _run(stand_ins, pods=("msg-slice-0-0-a\n", both, "msg-slice-0-0-b\n"), states=("", "", "", "Failed"))
    assert code == 2 and err.startswith("error: the JobSet msg has ended as Failed: see the output above")
    assert [call for call in calls if "logs" in call] == ["logs --follow msg-slice-0-0-a", "logs --follow msg-slice-0-0-b"]


@pytest.mark.parametrize(("existing", "replaced"), [
    ("", False), ("{same} ", False), ("{same} Completed", True), ("{same} Failed", True), ("123 ", True), (" ", True),
])
def test_a_jobset_is_replaced_if_its_arguments_changed_or_it_has_ended(manifest, stand_ins, existing, replaced):
    existing = existing.format(same=manifest["metadata"]["annotations"]["checksum"])
    code, _, calls = _run(stand_ins, existing)
    assert code == 0 and ("delete jobset msg" in calls) == replaced
    assert calls.index("apply -f -") == 1 + replaced


def test_the_checksum_is_that_of_the_arguments(stand_ins):
    manifests = [yaml.safe_load(stand_ins.run("gke.sh", "--dry_run", "--", f"--config={name}")[1]) for name in "aab"]
    one, same, other = (manifest["metadata"]["annotations"]["checksum"] for manifest in manifests)
    assert one == same != other
