# Names of the guide's scenario 2. Every variable that is set already keeps its value, so that the lab's own
# (eval "$(isthmus lab env)") stand.
export SCENARIO="${SCENARIO:-2}"
export LOCAL_ACCOUNT="${LOCAL_ACCOUNT:-123456789012}"
# An empty profile means the credentials of the environment.
export LOCAL_ACCOUNT_PROFILE="${LOCAL_ACCOUNT_PROFILE:-}"
export INT="$LOCAL_ACCOUNT_PROFILE"
export AWS_REGION="${AWS_REGION:-us-east-2}"
export CLUSTER_NAME="${CLUSTER_NAME:-demo}"
export OWNER_NAME="${OWNER_NAME:-$(id -un)}"
