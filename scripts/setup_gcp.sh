#!/usr/bin/env bash
# Creates what jobs need in a Google Cloud project, if it does not exist: enabled APIs, a registry, a bucket, a service
# account with the roles for a run, and with --cluster a GKE cluster whose jobs have access to the bucket.
#
#   scripts/setup_gcp.sh --project ID --bucket NAME [--region REGION] [--repository NAME] [--cluster NAME] [--dry-run]
#
# It prints each command, can be run again at any time, and deletes nothing. --dry-run only prints the commands. A
# bucket and a registry are billed by their size, an Autopilot cluster by its running pods plus an hourly fee.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
readonly ACCOUNT=trainer NAMESPACE=trainer  # both as in k8s/namespace.yaml
project='' bucket='' region=us-central1 repository=trainer cluster='' dry=''

fail() {
    echo "Error: $1 Received: $2" >&2
    exit 2
}

while (($#)); do
    case $1 in
        --project | --bucket | --region | --repository | --cluster)
            [[ ${2:-} && $2 != -* ]] || fail "$1 requires a value." "${2:-nothing} after $1"
            printf -v "${1#--}" %s "$2"
            shift 2
            ;;
        --dry-run) dry=1 && shift ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit ;;
        *) fail "There is no such option. --help lists all options." "$1" ;;
    esac
done
bucket=${bucket#gs://} bucket=${bucket%/}
[[ $project ]] || fail "Set the Google Cloud project ID with --project." "no --project"
for name in "$project" "$repository" ${cluster:+"$cluster"}; do
    [[ $name =~ ^[a-z][a-z0-9.:-]*[a-z0-9]$ ]] || fail "The name is invalid. Use lowercase letters, digits and hyphens." "${name@Q}"
done
[[ $bucket =~ ^[a-z0-9][a-z0-9._-]+$ ]] || fail "Set the bucket for data and runs with --bucket NAME." "--bucket '$bucket'"
[[ $region =~ ^[a-z]+-[a-z]+[0-9]+$ ]] || fail "The region is invalid. Use a name such as europe-west4." "--region '$region'"
for program in gcloud ${cluster:+kubectl}; do
    [[ $dry ]] || command -v "$program" >/dev/null ||
        fail "$program is not installed. See https://cloud.google.com/sdk/docs/install." "no $program on the PATH"
done

# run COMMAND...: print the command, then run it.
run() {
    printf '           %s\n' "${*@Q}" | sed "s/'\([A-Za-z0-9@%+=:,./_-]*\)'/\1/g"
    [[ $dry ]] || "$@" >/dev/null
}

# ensure NAME DESCRIBE... -- CREATE...: create the resource if the first command does not find it.
ensure() {
    local name=$1 describe=()
    shift
    while [[ $1 != -- ]]; do describe+=("$1") && shift; done
    shift
    if [[ ! $dry ]] && "${describe[@]}" >/dev/null 2>&1; then
        echo "exists     $name"
        return
    fi
    echo "create     $name"
    run "$@" || fail "The $name could not be created. The reason is above." "$*"
}

# grant NAME COMMAND...: add a role binding; repeat it, because a new account is not known everywhere at once.
grant() {
    echo "grant      $1"
    shift
    local attempts=6
    until run "$@"; do
        ((attempts -= 1)) || fail "A role could not be granted. The reason is above." "$*"
        echo "           failed, retrying in 10 s"
        sleep "${TRAINER_SETUP_PAUSE:-10}"
    done
}

email="$ACCOUNT@$project.iam.gserviceaccount.com"
where=(--project "$project" --quiet)

echo "enable     APIs"
run gcloud services enable aiplatform.googleapis.com artifactregistry.googleapis.com cloudbuild.googleapis.com \
    cloudresourcemanager.googleapis.com cloudscheduler.googleapis.com compute.googleapis.com \
    container.googleapis.com iam.googleapis.com logging.googleapis.com serviceusage.googleapis.com \
    storage.googleapis.com "${where[@]}" ||
    fail "The APIs could not be enabled. The reason is above; the project requires billing." "$project"
ensure "registry $repository" gcloud artifacts repositories describe "$repository" --location "$region" "${where[@]}" -- \
    gcloud artifacts repositories create "$repository" --location "$region" --repository-format docker "${where[@]}"
ensure "bucket gs://$bucket" gcloud storage buckets describe "gs://$bucket" "${where[@]}" -- \
    gcloud storage buckets create "gs://$bucket" --location "$region" --uniform-bucket-level-access \
    --public-access-prevention "${where[@]}"
ensure "account $email" gcloud iam service-accounts describe "$email" "${where[@]}" -- \
    gcloud iam service-accounts create "$ACCOUNT" --display-name "Training jobs" "${where[@]}"

grant "$ACCOUNT access to the bucket" gcloud storage buckets add-iam-policy-binding "gs://$bucket" \
    --member "serviceAccount:$email" --role roles/storage.objectUser "${where[@]}"
grant "$ACCOUNT permission to write logs" gcloud projects add-iam-policy-binding "$project" \
    --member "serviceAccount:$email" --role roles/logging.logWriter --condition None --quiet
# A schedule creates its jobs as this account, and they run as this account.
grant "$ACCOUNT permission to create jobs" gcloud projects add-iam-policy-binding "$project" \
    --member "serviceAccount:$email" --role roles/aiplatform.user --condition None --quiet
grant "$ACCOUNT permission to run jobs as itself" gcloud iam service-accounts add-iam-policy-binding "$email" \
    --member "serviceAccount:$email" --role roles/iam.serviceAccountUser "${where[@]}"

number=NUMBER
[[ $dry ]] || number=$(gcloud projects describe "$project" --format 'value(projectNumber)' --quiet) ||
    fail "The number of the project could not be read. The reason is above." "$project"
if [[ $cluster ]]; then
    ensure "cluster $cluster" gcloud container clusters describe "$cluster" --region "$region" "${where[@]}" -- \
        gcloud container clusters create-auto "$cluster" --region "$region" "${where[@]}"
    echo "create     namespace and service account in the cluster"
    run gcloud container clusters get-credentials "$cluster" --region "$region" "${where[@]}" ||
        fail "The credentials of the cluster could not be read. The reason is above." "$cluster"
    run kubectl apply -f k8s/namespace.yaml ||
        fail "The namespace could not be created. kubectl requires gke-gcloud-auth-plugin for GKE." "k8s/namespace.yaml"
    pool="projects/$number/locations/global/workloadIdentityPools/$project.svc.id.goog"
    grant "jobs of the namespace $NAMESPACE access to the bucket" gcloud storage buckets add-iam-policy-binding "gs://$bucket" \
        --member "principal://iam.googleapis.com/$pool/subject/ns/$NAMESPACE/sa/$ACCOUNT" \
        --role roles/storage.objectUser "${where[@]}"
    # Nodes pull images with the default service account of Compute Engine.
    grant "nodes access to the registry" gcloud artifacts repositories add-iam-policy-binding "$repository" \
        --location "$region" --member "serviceAccount:$number-compute@developer.gserviceaccount.com" \
        --role roles/artifactregistry.reader "${where[@]}"
fi

registry="REGISTRY/$project/$repository"
if [[ $dry ]]; then
    echo "dry run    nothing was changed"
else
    registry=$(gcloud artifacts repositories describe "$repository" --location "$region" \
        --format 'value(registryUri)' "${where[@]}") || fail "The registry could not be read." "$repository"
    echo "ready      $project, $region, gs://$bucket"
fi
cat <<EOF
next       gcloud auth configure-docker ${registry%%/*}
           trainer image build --variant gpu --name $registry/trainer
           trainer image push --variant gpu --name $registry/trainer
           export TRAINER_IMAGE=$registry/trainer:gpu
           trainer doctor vertex --project $project --region $region --output gs://$bucket/runs --service-account $email
EOF
