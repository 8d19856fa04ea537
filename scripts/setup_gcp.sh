#!/usr/bin/env bash
# Makes what jobs need in a project of Google Cloud, where it isn't there yet: interfaces, a registry, a bucket, an
# account with the rights that a run needs, and with --cluster a GKE cluster whose jobs may use the bucket.
#
#   scripts/setup_gcp.sh --project ID --bucket NAME [--region REGION] [--repository NAME] [--cluster NAME] [--dry-run]
#
# It says each thing that it does, can be run again at any time, and removes nothing. --dry-run prints the commands
# and asks nobody. A bucket and a registry cost by what is in them, an Autopilot cluster by what runs in it and a
# fee for each hour.
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
            [[ ${2:-} && $2 != -* ]] || fail "$1 takes a value." "${2:-nothing} after $1"
            printf -v "${1#--}" %s "$2"
            shift 2
            ;;
        --dry-run) dry=1 && shift ;;
        -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0" && exit ;;
        *) fail "--project and --bucket are needed, --help lists the rest." "$1" ;;
    esac
done
bucket=${bucket#gs://} bucket=${bucket%/}
[[ $project ]] || fail "--project says in which project of Google Cloud." "no --project"
for name in "$project" "$repository" ${cluster:+"$cluster"}; do
    [[ $name =~ ^[a-z][a-z0-9.:-]*[a-z0-9]$ ]] || fail "A name has small letters, digits and -." "${name@Q}"
done
[[ $bucket =~ ^[a-z0-9][a-z0-9._-]+$ ]] || fail "--bucket names the bucket for data and runs." "--bucket '$bucket'"
[[ $region =~ ^[a-z]+-[a-z]+[0-9]+$ ]] || fail "A region is called as europe-west4." "--region '$region'"
for program in gcloud ${cluster:+kubectl}; do
    [[ $dry ]] || command -v "$program" >/dev/null ||
        fail "$program isn't installed; https://cloud.google.com/sdk/docs/install tells how." "no $program on the PATH"
done

# run COMMAND...: says what it does, and does it.
run() {
    printf '           %s\n' "${*@Q}" | sed "s/'\([A-Za-z0-9@%+=:,./_-]*\)'/\1/g"
    [[ $dry ]] || "$@" >/dev/null
}

# ensure WHAT DESCRIBE... -- CREATE...: makes it if it can't be described.
ensure() {
    local what=$1 ask=()
    shift
    while [[ $1 != -- ]]; do ask+=("$1") && shift; done
    shift
    if [[ ! $dry ]] && "${ask[@]}" >/dev/null 2>&1; then
        echo "there      $what"
        return
    fi
    echo "make       $what"
    run "$@" || fail "The $what could not be made; see above why." "$*"
}

# grant WHAT COMMAND...: an account that was just made isn't known everywhere at once.
grant() {
    echo "grant      $1"
    shift
    local left=6
    until run "$@"; do
        ((left -= 1)) || fail "A right could not be granted." "$*"
        echo "           not yet, once more in 10 s"
        sleep "${TRAINER_SETUP_PAUSE:-10}"
    done
}

email="$ACCOUNT@$project.iam.gserviceaccount.com"
where=(--project "$project" --quiet)

echo "enable     interfaces"
run gcloud services enable aiplatform.googleapis.com artifactregistry.googleapis.com cloudbuild.googleapis.com \
    cloudresourcemanager.googleapis.com cloudscheduler.googleapis.com compute.googleapis.com \
    container.googleapis.com iam.googleapis.com logging.googleapis.com serviceusage.googleapis.com \
    storage.googleapis.com "${where[@]}" ||
    fail "The interfaces could not be enabled; see above why. A project needs billing for them." "$project"
ensure "registry $repository" gcloud artifacts repositories describe "$repository" --location "$region" "${where[@]}" -- \
    gcloud artifacts repositories create "$repository" --location "$region" --repository-format docker "${where[@]}"
ensure "bucket gs://$bucket" gcloud storage buckets describe "gs://$bucket" "${where[@]}" -- \
    gcloud storage buckets create "gs://$bucket" --location "$region" --uniform-bucket-level-access \
    --public-access-prevention "${where[@]}"
ensure "account $email" gcloud iam service-accounts describe "$email" "${where[@]}" -- \
    gcloud iam service-accounts create "$ACCOUNT" --display-name "Training jobs" "${where[@]}"

grant "$ACCOUNT the bucket" gcloud storage buckets add-iam-policy-binding "gs://$bucket" \
    --member "serviceAccount:$email" --role roles/storage.objectUser "${where[@]}"
grant "$ACCOUNT its log" gcloud projects add-iam-policy-binding "$project" \
    --member "serviceAccount:$email" --role roles/logging.logWriter --condition None --quiet
# A schedule posts its job as this account, to be run as this account.
grant "$ACCOUNT to start jobs" gcloud projects add-iam-policy-binding "$project" \
    --member "serviceAccount:$email" --role roles/aiplatform.user --condition None --quiet
grant "$ACCOUNT to run them as itself" gcloud iam service-accounts add-iam-policy-binding "$email" \
    --member "serviceAccount:$email" --role roles/iam.serviceAccountUser "${where[@]}"

number=NUMBER
[[ $dry ]] || number=$(gcloud projects describe "$project" --format 'value(projectNumber)' --quiet) ||
    fail "The project's number could not be had; see above why." "$project"
if [[ $cluster ]]; then
    ensure "cluster $cluster" gcloud container clusters describe "$cluster" --region "$region" "${where[@]}" -- \
        gcloud container clusters create-auto "$cluster" --region "$region" "${where[@]}"
    echo "make       namespace and account in the cluster"
    run gcloud container clusters get-credentials "$cluster" --region "$region" "${where[@]}" ||
        fail "The cluster's credentials could not be had; see above why." "$cluster"
    run kubectl apply -f k8s/namespace.yaml ||
        fail "The namespace could not be made; kubectl needs gke-gcloud-auth-plugin for GKE." "k8s/namespace.yaml"
    pool="projects/$number/locations/global/workloadIdentityPools/$project.svc.id.goog"
    grant "the jobs of namespace $NAMESPACE the bucket" gcloud storage buckets add-iam-policy-binding "gs://$bucket" \
        --member "principal://iam.googleapis.com/$pool/subject/ns/$NAMESPACE/sa/$ACCOUNT" \
        --role roles/storage.objectUser "${where[@]}"
    # Nodes fetch images as the project's own account for machines.
    grant "the nodes the registry" gcloud artifacts repositories add-iam-policy-binding "$repository" \
        --location "$region" --member "serviceAccount:$number-compute@developer.gserviceaccount.com" \
        --role roles/artifactregistry.reader "${where[@]}"
fi

registry="REGISTRY/$project/$repository"
if [[ $dry ]]; then
    echo "dry run    nothing was done"
else
    registry=$(gcloud artifacts repositories describe "$repository" --location "$region" \
        --format 'value(registryUri)' "${where[@]}") || fail "The registry could not be found." "$repository"
    echo "ready      $project, $region, gs://$bucket"
fi
cat <<EOF
next       gcloud auth configure-docker ${registry%%/*}
           trainer image build --variant gpu --name $registry/trainer
           trainer image push --variant gpu --name $registry/trainer
           export TRAINER_IMAGE=$registry/trainer:gpu
           trainer doctor vertex --project $project --region $region --output gs://$bucket/runs --service-account $email
EOF
